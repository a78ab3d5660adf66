// conv.cuh - what the three directions of convolution share: the tile product, and the loaders of its operands. Operands are
// rounded to the tensors' elements once all that is pending is applied; products and sums are float32.
//
//   sum[m][n] += sum over e of a(m, e) b(n, e)
//
// A block makes a tile of TILE_M x TILE_N sums, TILE_K terms a step. In each direction one operand is a tensor of pixels
// seen through the filter's window. It is never unrolled into memory: a loader finds the places of its elements as it
// goes, in counters of mixed radix (digits.cuh).
//
//   loader       fetch(): a step's elements from memory into registers; store(): what is pending applied, to shared memory
//   multiply     the main loop: registers -> shared memory -> register tiles of THREAD_M x THREAD_N -> FMA
//   epilogue     each direction's own
//
// A step's elements are fetched before the previous step's product and stored after it, to the other of two stages: one
// barrier per step, and TILE_K THREAD_M THREAD_N FMAs per thread to hide memory's latency.
//
// Shared tiles are TILE_K rows of TILE_M (TILE_N) numbers, so that a thread's fragment is read 16 bytes at a time. Tensors
// whose neighbours lie *along* the sum arrive transposed: a thread brings four terms (quad q of the step) of one row m and
// stores them one below the other, at column m ^ 8 q. A warp brings four quads of eight rows, so the swizzle spreads its
// stores over all 32 banks, and being a multiple of 8 it leaves fragments of 4 in one piece. Tensors whose neighbours lie
// *across* the sum are stored as they come.
//
// With VECTOR = 4 a quad is one 16-byte load: row lengths are multiples of 4, addresses aligned. With VECTOR = 1 its four
// elements are found and loaded one by one, and everything else is the same. An element outside (padding, tails) is
// loaded from the tensor's first place and replaced by zero when it is stored: no branches.

#pragma once

#include "digits.cuh"
#include "pending.cuh"

// Threads of the tile product lie 8 across; a warp takes 4 x 8 fragments.
#define THREADS_ACROSS (TILE_N / THREAD_N)
static_assert(THREADS == (TILE_M / THREAD_M) * THREADS_ACROSS, "a fragment a thread");
static_assert(THREADS_ACROSS == 8 && TILE_K == 16 && THREAD_M % 4 == 0 && THREAD_N % 4 == 0, "conflict-free fragments");
static_assert(TILE_M / (THREAD_M / 4) >= 32 && TILE_N / (THREAD_N / 4) >= 32, "the swizzle stays in a segment");

// Places of a quad that are computed one by one.
#define PLACES (4 / VECTOR)

// Quads that a thread loads of a tile of `width` rows or columns.
__device__ constexpr u32 quads(u32 width) { return width * TILE_K / 4 / THREADS; }

// A thread's rows and columns come in segments of four, each from its own stretch of the tile.
__device__ __forceinline__ u32 tile_row(u32 i) {
    return threadIdx.x / THREADS_ACROSS * 4 + i / 4 * (TILE_M / (THREAD_M / 4)) + i % 4;
}

__device__ __forceinline__ u32 tile_column(u32 j) {
    return threadIdx.x % THREADS_ACROSS * 4 + j / 4 * (TILE_N / (THREAD_N / 4)) + j % 4;
}

__device__ __forceinline__ bool is_aligned(const float* rows, u32 width) {
    return width % 4 == 0 && (u64)rows % 16 == 0;
}

// The quad with zeros for the numbers that are not valid: bit j % PARTS of `valid` is for number j.
template <u32 PARTS = PLACES> __device__ __forceinline__ Vector<4> valid_places(u32 valid, Vector<4> v) {
#pragma unroll
    for (u32 j = 0; j < 4; j++) v[j] = valid >> (j % PARTS) & 1 ? v[j] : 0.0f;
    return v;
}

// Puts a quad of terms 4 q.. of row m below each other.
template <u32 WIDTH>
__device__ __forceinline__ void store_along(float (&tile)[TILE_K][WIDTH], u32 q, u32 m, const Vector<4>& v) {
#pragma unroll
    for (u32 j = 0; j < 4; j++) tile[4 * q + j][m ^ (8 * q)] = v[j];
}

// An image seen by a window: fprop's input, dgrad's gradient.
struct Image {
    u32 height, width, channels;
    // Taps of a window row, and of the window.
    u32 taps_across, taps_down;
};

// The pixels of a tile's TILE_M rows, each seen through its window; terms are (tap row, tap column, channel), neighbours
// along the sum. The window of row m begins at its origin, and tap (r, s) meets origin + (r, s), or - (r, s) where REVERSED.
template <template <u32> class Reader, bool REVERSED>
struct WindowsAlong {
    enum : u32 { SWIZZLED = 1 };
    enum : u32 { ROWS = quads(TILE_M) };
    Image image;
    Reader<4> reader;
    Radix taps;
    // Of the quad's first term.
    Digits place;
    // Of each row's origin; an impossible height where the row is not there.
    u32 h[ROWS], w[ROWS];
    long long base[ROWS];
    Vector<4> raw[ROWS][Reader<4>::TENSORS];
    u32 valid;

    // Terms from `first` on; `origin(i, h, w, image_start)` gives the origin of the tile's row i and the first element of
    // its image, or returns false.
    template <class Pending, class Origin>
    __device__ __forceinline__ WindowsAlong(const Image& image, const Pending& pending, u32 first, Origin origin)
        : image(image), reader(pending), taps(radix(image.taps_across, image.channels, TILE_K)) {
        place = digits(first + threadIdx.x % 4 * 4, image.taps_across, image.channels);
#pragma unroll
        for (u32 i = 0; i < ROWS; i++) {
            u64 start = 0;
            h[i] = w[i] = 0;
            if (!origin(threadIdx.x / 4 + i * (THREADS / 4), h[i], w[i], start)) h[i] = 0x80000000u;
            base[i] = (long long)start + ((long long)(int)h[i] * image.width + (int)w[i]) * image.channels;
        }
    }

    __device__ __forceinline__ void fetch() {
        valid = 0;
        Digits at = place;
#pragma unroll
        for (u32 j = 0; j < PLACES; j++) {
            bool inside = at.high < image.taps_down;
            u32 c = inside ? at.low : 0;
            reader.set(image.channels, j, c);
            long long tap = (at.high * image.width + at.mid) * image.channels, offset = (REVERSED ? -tap : tap) + c;
#pragma unroll
            for (u32 i = 0; i < ROWS; i++) {
                u32 row = REVERSED ? h[i] - at.high : h[i] + at.high, column = REVERSED ? w[i] - at.mid : w[i] + at.mid;
                bool meets = inside & (row < image.height) & (column < image.width);
                valid |= (u32)meets << (i * PLACES + j);
                reader.fetch(raw[i], j, meets ? base[i] + offset : 0);
            }
            if (j + 1 < PLACES) next(at, taps);
        }
        advance(place, taps);
    }

    __device__ __forceinline__ void store(float (&tile)[TILE_K][TILE_M]) {
#pragma unroll
        for (u32 i = 0; i < ROWS; i++) {
            Vector<4> v = valid_places(valid >> (i * PLACES), rounded(reader.apply(raw[i])));
            store_along(tile, threadIdx.x % 4, threadIdx.x / 4 + i * (THREADS / 4), v);
        }
    }
};

// A matrix whose rows of `length` terms lie along the sum: fprop's filters.
struct RowsAlong {
    enum : u32 { SWIZZLED = 1 };
    enum : u32 { ROWS = quads(TILE_N) };
    const Element* matrix;
    u32 length, term;
    u64 row[ROWS];
    Vector<4> raw[ROWS];
    u32 valid;

    // The tile's rows from row n on; those from `rows` on are read from row 0 and end where nothing is stored.
    __device__ __forceinline__ RowsAlong(const Element* matrix, u32 rows, u32 length, u32 n, u32 first)
        : matrix(matrix), length(length), term(first + threadIdx.x % 4 * 4) {
#pragma unroll
        for (u32 i = 0; i < ROWS; i++) {
            u32 at = n + threadIdx.x / 4 + i * (THREADS / 4);
            row[i] = (u64)(at < rows ? at : 0) * length;
        }
    }

    __device__ __forceinline__ void fetch() {
        valid = 0;
#pragma unroll
        for (u32 j = 0; j < PLACES; j++) {
            bool inside = term + j < length;
            valid |= (u32)inside << j;
#pragma unroll
            for (u32 i = 0; i < ROWS; i++) {
                load_part(raw[i], j, matrix + (inside ? row[i] + term + j : 0));
            }
        }
        term += TILE_K;
    }

    __device__ __forceinline__ void store(float (&tile)[TILE_K][TILE_N]) {
#pragma unroll
        for (u32 i = 0; i < ROWS; i++) {
            store_along(tile, threadIdx.x % 4, threadIdx.x / 4 + i * (THREADS / 4), valid_places(valid, raw[i]));
        }
    }
};

// Where a loader whose neighbours lie across the sum works: columns 4 `quad`.., terms first_row + i * ROW_STEP.
template <u32 WIDTH>
struct Across {
    enum : u32 { ROW_STEP = THREADS / (WIDTH / 4) };
    enum : u32 { ROWS = TILE_K / ROW_STEP };
    static_assert(ROWS == quads(WIDTH), "a quad a row");

    static __device__ __forceinline__ u32 column() { return threadIdx.x % (WIDTH / 4) * 4; }
    static __device__ __forceinline__ u32 row(u32 i) { return threadIdx.x / (WIDTH / 4) + i * ROW_STEP; }
};

// The main loop: `steps` steps of TILE_K terms.
template <class A, class B>
__device__ __forceinline__ void multiply(A& a, B& b, u32 steps, float (&sum)[THREAD_M][THREAD_N]) {
    __shared__ __align__(16) float tile_a[2][TILE_K][TILE_M];
    __shared__ __align__(16) float tile_b[2][TILE_K][TILE_N];
    if (steps == 0) return;
    a.fetch();
    b.fetch();
    a.store(tile_a[0]);
    b.store(tile_b[0]);
    __syncthreads();
    for (u32 step = 1;; step++) {
        u32 stage = (step - 1) % 2;
        if (step < steps) {
            a.fetch();
            b.fetch();
        }
#pragma unroll
        for (u32 k = 0; k < TILE_K; k++) {
            Vector<4> m[THREAD_M / 4], n[THREAD_N / 4];
            // The same for four k: the exclusive or is taken once, the segments are constant distances.
            u32 row = tile_row(0) ^ (A::SWIZZLED ? k / 4 * 8 : 0), column = tile_column(0) ^ (B::SWIZZLED ? k / 4 * 8 : 0);
#pragma unroll
            for (u32 i = 0; i < THREAD_M / 4; i++) m[i] = load<4>(&tile_a[stage][k][row + i * (TILE_M / (THREAD_M / 4))]);
#pragma unroll
            for (u32 j = 0; j < THREAD_N / 4; j++) n[j] = load<4>(&tile_b[stage][k][column + j * (TILE_N / (THREAD_N / 4))]);
#pragma unroll
            for (u32 i = 0; i < THREAD_M; i++) {
#pragma unroll
                for (u32 j = 0; j < THREAD_N; j++) sum[i][j] = fmaf(m[i / 4][i % 4], n[j / 4][j % 4], sum[i][j]);
            }
        }
        if (step == steps) break;
        a.store(tile_a[step % 2]);
        b.store(tile_b[step % 2]);
        __syncthreads();
    }
}
