// gemm.cuh - the matrix product: one main loop for every loader of operands, every kind of multiplication, every epilogue.
//
//   sum[m][n] = sum over e of a(m, e) b(n, e)
//
// A block makes a tile of TILE_M x TILE_N sums, 64 bytes of terms (TILE_K) a step.
//
//   loaders     copy(): a step's elements on their way to shared memory, 16 bytes (a chunk) at a time; settle(): what is
//               pending applied where they lie, each chunk by the thread that copied it
//   Sums        the sums of a block, and how they are made: fused multiply-adds for float32, tensor cores for bfloat16
//   hand_out()  the sums by rows, a chunk of neighbours at a time, to an epilogue
//
// There are STAGES stages. While one is multiplied the next ones are on their way:
//
//   wait for this thread's copies of step t; settle them; barrier; begin the copies of step t + STAGES - 1; multiply step t
//
// After the barrier every thread sees all of step t, and no thread reads step t - 1 any more: its stage is filled next.
// Cards before sm_80 have no asynchronous copies. There a thread waits for each copy.
//
// An operand whose neighbours lie along the sum is kept as rows of 4 chunks of terms; one whose neighbours lie across it, as
// terms of WIDTH numbers. place() permutes the chunks of a line, so that what a warp reads at once lies in different banks.
//
// Numerics. float32: terms in order from 0, fused multiply-adds. bfloat16: mma.sync with 16 terms at a time, in order, each
// added as the card's tensor cores do it; they truncate. Where BOUNDED, the 32 terms of a step are summed from 0 and added in
// float32, rounded to nearest: truncation then stays that of 32 terms, however long the sum. Long sums are BOUNDED.

#pragma once

#include "pending.cuh"

// Elements of a chunk.
#define CHUNK (16u / ELEMENT)
// Chunks of terms that a step takes of a row.
#define STEP_CHUNKS 4u
static_assert(TILE_K == STEP_CHUNKS * CHUNK, "a step is 64 bytes of terms");
static_assert(VECTOR == CHUNK || VECTOR == 1, "a chunk at a time, or one by one");

struct alignas(16) Chunk {
    Element at[CHUNK];
};

// A block's shared memory: the stages, and after them the sums, in lines. Lines are 8 longer than a row, so that the four
// rows that a warp writes together lie in different banks.
extern __shared__ Chunk shared[];
#define LINE (TILE_N + 8u)
static_assert(TILE_M * LINE * sizeof(float) <= SHARED, "the sums fit");

// The share of a thread in the epilogue: the columns from handed_column() on, CHUNK of them, of every HANDED_ROWS-th row.
#define HANDED_ROWS (THREADS / (TILE_N / CHUNK))
static_assert(TILE_M % HANDED_ROWS == 0, "as many rows for every thread");
__device__ __forceinline__ u32 handed_row() { return threadIdx.x / (TILE_N / CHUNK); }
__device__ __forceinline__ u32 handed_column() { return threadIdx.x % (TILE_N / CHUNK) * CHUNK; }

// The tile of an operand whose neighbours lie along the sum: lines are its rows.
template <u32 WIDTH> struct Along {
    static constexpr bool ALONG = true;
    static constexpr u32 CHUNKS = WIDTH * STEP_CHUNKS;
    // A thread copies one chunk of each of this many lines.
    static constexpr u32 LINES = CHUNKS / THREADS;

    static __device__ __forceinline__ u32 line(u32 i) { return threadIdx.x / STEP_CHUNKS + i * (THREADS / STEP_CHUNKS); }
    static __device__ __forceinline__ u32 chunk() { return threadIdx.x % STEP_CHUNKS; }
    // Two lines fill the banks; eight lines in a row meet them all.
    static __device__ __forceinline__ u32 place(u32 line, u32 chunk) {
        return line * STEP_CHUNKS + (chunk ^ line / 2 % STEP_CHUNKS);
    }
};

// The tile of an operand whose neighbours lie across the sum: lines are terms.
template <u32 WIDTH> struct Across {
    static constexpr bool ALONG = false;
    static constexpr u32 ACROSS = WIDTH / CHUNK;
    static constexpr u32 CHUNKS = ACROSS * TILE_K;
    static constexpr u32 LINES = CHUNKS / THREADS;
    static_assert(ACROSS % 8 == 0, "eight chunks fill the banks");

    static __device__ __forceinline__ u32 line(u32 i) { return threadIdx.x / ACROSS + i * (THREADS / ACROSS); }
    static __device__ __forceinline__ u32 chunk() { return threadIdx.x % ACROSS; }
    static __device__ __forceinline__ u32 place(u32 line, u32 chunk) { return line * ACROSS + (chunk ^ line % 8); }
};

// Begins to copy a chunk to shared memory, or zeros there. `from` is a valid address either way. wait_for_copies() waits
// for it.
__device__ __forceinline__ void copy_chunk(Chunk* to, const Element* from, bool there) {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"((u32)__cvta_generic_to_shared(to)), "l"(from),
                 "r"(there ? 16u : 0u)
                 : "memory");
#else
    uint4 chunk = *reinterpret_cast<const uint4*>(from);
    *reinterpret_cast<uint4*>(to) = there ? chunk : make_uint4(0, 0, 0, 0);
#endif
}

// Ends a group of this thread's copies.
__device__ __forceinline__ void close_copies() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Waits until at most the last OPEN of this thread's groups of copies are still on their way.
template <u32 OPEN> __device__ __forceinline__ void wait_for_copies() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_group %0;" ::"n"(OPEN) : "memory");
#endif
}

// An operand on its way to shared memory. A source says where its numbers are:
//
//   Tile                 Along or Across
//   reader               of the tensor's numbers (pending.cuh), with what is pending
//   channels()           of the reader's coefficients
//   set(j)               turns to element j of this thread's chunks
//   find(i, at)          the place of that element in line i; false for one that is zero
//   channel()            the channel of that element
//   next()               on to the next step
//   settled(), next_settled()    the first channel of the chunks of the step that is to be settled next; on to its next
//   sees(), seen(j, v)   whether it wants to see what is settled, and VECTOR numbers of a chunk from element j on
//
// All begin as below; a source hides what it does otherwise.
struct Source {
    u32 element = 0;

    __device__ __forceinline__ void set(u32 j) { element = j; }
    __device__ __forceinline__ u32 channels() const { return 0; }
    __device__ __forceinline__ u32 channel() const { return 0; }
    __device__ __forceinline__ u32 settled() const { return 0; }
    __device__ __forceinline__ void next_settled() {}
    __device__ __forceinline__ bool sees() const { return false; }
    __device__ __forceinline__ void seen(u32, const Vector<>&) {}
};

template <class From> struct Loader {
    typedef typename From::Tile Tile;
    enum : u32 { TENSORS = decltype(From::reader)::TENSORS, CHUNKS = TENSORS * Tile::CHUNKS };
    static_assert(STAGES * Tile::LINES <= 32, "a bit for each chunk on its way");

    From source;
    // Which of the chunks on their way are there, line by line, stage by stage.
    u32 there = 0;

    __device__ __forceinline__ explicit Loader(const From& source) : source(source) {}

    // Begins to copy the next step's chunks. One by one, what is pending is applied on the way.
    __device__ __forceinline__ void copy(Chunk* tile, u32 stage) {
        if constexpr (VECTOR == CHUNK) {
            u32 bits = 0;
            source.set(0);
#pragma unroll
            for (u32 i = 0; i < Tile::LINES; i++) {
                u64 at = 0;
                bool found = source.find(i, at);
                bits |= (u32)found << i;
                u32 place = Tile::place(Tile::line(i), Tile::chunk());
#pragma unroll
                for (u32 t = 0; t < TENSORS; t++) {
                    if (t > 0 && !source.reader.pends()) continue;
                    copy_chunk(&tile[t * Tile::CHUNKS + place], source.reader.tensor(t) + (found ? at : 0), found);
                }
            }
            u32 shift = stage * Tile::LINES;
            there = (there & ~(((1u << Tile::LINES) - 1) << shift)) | bits << shift;
        } else {
            for (u32 j = 0; j < CHUNK; j++) {
                source.set(j);
                source.reader.set(source.channels(), source.channel());
#pragma unroll
                for (u32 i = 0; i < Tile::LINES; i++) {
                    u64 at = 0;
                    Vector<> v = splat(0.0f);
                    if (source.find(i, at)) {
                        v = rounded(read(source.reader, at));
                        source.seen(j, v);
                    }
                    store(&tile[Tile::place(Tile::line(i), Tile::chunk())].at[j], v);
                }
            }
        }
        source.next();
    }

    // Applies what is pending to this thread's chunks of the oldest step that is not settled. Zeros stay zeros.
    __device__ __forceinline__ void settle(Chunk* tile, u32 stage) {
        if constexpr (VECTOR == CHUNK) {
            bool pends = source.reader.pends();
            if (!pends && !source.sees()) return;
            source.reader.set(source.channels(), source.settled());
#pragma unroll
            for (u32 i = 0; i < Tile::LINES; i++) {
                if (!(there >> (stage * Tile::LINES + i) & 1)) continue;
                Chunk* chunk = &tile[Tile::place(Tile::line(i), Tile::chunk())];
                Vector<> raw[TENSORS];
#pragma unroll
                for (u32 t = 0; t < TENSORS; t++) raw[t] = load(chunk[t * Tile::CHUNKS].at);
                Vector<> v = rounded(source.reader.apply(raw));
                source.seen(0, v);
                if (pends) store(chunk->at, v);
            }
            source.next_settled();
        }
    }
};

#if ELEMENT == 2

// Warps lie WARPS_ACROSS across; each makes PART_M x PART_N sums of 16 x 8 pieces.
#define WARPS_ACROSS (TILE_N / PART_N)
static_assert(WARPS == (TILE_M / PART_M) * WARPS_ACROSS, "a part a warp");
static_assert(PART_M % 16 == 0 && PART_N % 16 == 0, "whole pieces, two at a time across");

// Four 8 x 8 matrices of bfloat16: lane l says where row l % 8 of matrix l / 8 begins, and gets of each matrix elements
// 2 (l % 4) and the next of row l / 4; transposed, of column l / 4.
template <bool TRANSPOSED> __device__ __forceinline__ void load_matrices(u32 (&to)[4], const Chunk* row) {
    u32 from = (u32)__cvta_generic_to_shared(row);
    if (TRANSPOSED) {
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                     : "r"(from)
                     : "memory");
    } else {
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                     : "r"(from)
                     : "memory");
    }
}

__device__ __forceinline__ void multiply_add(float (&sum)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// The sums of a block, of the products of two tiles, on tensor cores.
template <class A, class B, bool BOUNDED> struct Sums {
    float at[PART_M / 16][PART_N / 8][4] = {};

    static __device__ __forceinline__ u32 first_row() { return threadIdx.x / WARP / WARPS_ACROSS * PART_M; }
    static __device__ __forceinline__ u32 first_column() { return threadIdx.x / WARP % WARPS_ACROSS * PART_N; }

    // Terms 16 s.. of rows m..m+15.
    static __device__ __forceinline__ void rows(u32 (&to)[4], const Chunk* tile, u32 m, u32 s) {
        u32 lane = threadIdx.x % WARP;
        if constexpr (A::ALONG) {
            load_matrices<false>(to, &tile[A::place(m + lane % 16, 2 * s + lane / 16)]);
        } else {
            load_matrices<true>(to, &tile[A::place(16 * s + lane % 8 + lane / 16 * 8, m / CHUNK + lane / 8 % 2)]);
        }
    }

    // Terms 16 s.. of columns n..n+15: of each eight, the first and the second half of the terms.
    static __device__ __forceinline__ void columns(u32 (&to)[4], const Chunk* tile, u32 n, u32 s) {
        u32 lane = threadIdx.x % WARP;
        if constexpr (B::ALONG) {
            load_matrices<false>(to, &tile[B::place(n + lane % 8 + lane / 16 * 8, 2 * s + lane / 8 % 2)]);
        } else {
            load_matrices<true>(to, &tile[B::place(16 * s + lane % 16, n / CHUNK + lane / 16)]);
        }
    }

    // Adds a step's products.
    __device__ __forceinline__ void add(const Chunk* a, const Chunk* b) {
        constexpr u32 HALVES = TILE_K / 16;
        if constexpr (BOUNDED) {
            u32 m[HALVES][PART_M / 16][4];
#pragma unroll
            for (u32 s = 0; s < HALVES; s++) {
#pragma unroll
                for (u32 i = 0; i < PART_M / 16; i++) rows(m[s][i], a, first_row() + 16 * i, s);
            }
#pragma unroll
            for (u32 j = 0; j < PART_N / 8; j += 2) {
                u32 n[HALVES][4];
#pragma unroll
                for (u32 s = 0; s < HALVES; s++) columns(n[s], b, first_column() + 8 * j, s);
#pragma unroll
                for (u32 i = 0; i < PART_M / 16; i++) {
#pragma unroll
                    for (u32 half = 0; half < 2; half++) {
                        float step[4] = {};
#pragma unroll
                        for (u32 s = 0; s < HALVES; s++) multiply_add(step, m[s][i], n[s][2 * half], n[s][2 * half + 1]);
#pragma unroll
                        for (u32 k = 0; k < 4; k++) at[i][j + half][k] += step[k];
                    }
                }
            }
        } else {
#pragma unroll
            for (u32 s = 0; s < HALVES; s++) {
                u32 m[PART_M / 16][4];
#pragma unroll
                for (u32 i = 0; i < PART_M / 16; i++) rows(m[i], a, first_row() + 16 * i, s);
#pragma unroll
                for (u32 j = 0; j < PART_N / 8; j += 2) {
                    u32 n[4];
                    columns(n, b, first_column() + 8 * j, s);
#pragma unroll
                    for (u32 i = 0; i < PART_M / 16; i++) {
                        multiply_add(at[i][j], m[i], n[0], n[1]);
                        multiply_add(at[i][j + 1], m[i], n[2], n[3]);
                    }
                }
            }
        }
    }

    // Writes this thread's sums to their places.
    __device__ __forceinline__ void put(float (*lines)[LINE]) const {
        u32 m = first_row() + threadIdx.x % WARP / 4, n = first_column() + threadIdx.x % 4 * 2;
#pragma unroll
        for (u32 i = 0; i < PART_M / 16; i++) {
#pragma unroll
            for (u32 j = 0; j < PART_N / 8; j++) {
                const float (&v)[4] = at[i][j];
                *reinterpret_cast<float2*>(&lines[m + 16 * i][n + 8 * j]) = make_float2(v[0], v[1]);
                *reinterpret_cast<float2*>(&lines[m + 16 * i + 8][n + 8 * j]) = make_float2(v[2], v[3]);
            }
        }
    }
};

#else

// Threads lie 8 across; each makes PART_M x PART_N sums. A warp takes 4 x 8 parts.
#define THREADS_ACROSS (TILE_N / PART_N)
static_assert(THREADS == (TILE_M / PART_M) * THREADS_ACROSS, "a part a thread");
static_assert(THREADS_ACROSS == 8 && PART_M % 4 == 0 && PART_N % 4 == 0, "conflict-free parts");

// The numbers that a thread needs of one operand: COUNT rows or columns, `threads` threads side by side. Along the sum four
// terms of each are read at once, and neighbouring threads have neighbouring rows; across it four rows of each term.
template <class Tile, u32 COUNT> struct Part {
    Vector<4> at[Tile::ALONG ? COUNT : COUNT / 4];

    static __device__ __forceinline__ u32 row(u32 thread, u32 threads, u32 i) {
        return Tile::ALONG ? thread + i * threads : (thread + i / 4 * threads) * 4 + i % 4;
    }

    // Terms 4 q.. where they lie along the sum.
    __device__ __forceinline__ void read_chunk(const Chunk* tile, u32 thread, u32 threads, u32 q) {
        if constexpr (Tile::ALONG) {
#pragma unroll
            for (u32 i = 0; i < COUNT; i++) at[i] = load<4>(tile[Tile::place(row(thread, threads, i), q)].at);
        }
    }

    // Term k where they lie across it.
    __device__ __forceinline__ void read_term(const Chunk* tile, u32 thread, u32 threads, u32 k) {
        if constexpr (!Tile::ALONG) {
#pragma unroll
            for (u32 i = 0; i < COUNT / 4; i++) at[i] = load<4>(tile[Tile::place(k, thread + i * threads)].at);
        }
    }

    // Term t of the chunk for row i.
    __device__ __forceinline__ float operator()(u32 i, u32 t) const { return Tile::ALONG ? at[i][t] : at[i / 4][i % 4]; }
};

// The sums of a block by fused multiply-adds, which round to nearest: BOUNDED changes nothing.
template <class A, class B, bool BOUNDED> struct Sums {
    typedef Part<A, PART_M> Rows;
    typedef Part<B, PART_N> Columns;
    static constexpr u32 DOWN = THREADS / THREADS_ACROSS, ACROSS = THREADS_ACROSS;

    float at[PART_M][PART_N] = {};

    static __device__ __forceinline__ u32 down() { return threadIdx.x / ACROSS; }
    static __device__ __forceinline__ u32 across() { return threadIdx.x % ACROSS; }

    // Adds a step's products.
    __device__ __forceinline__ void add(const Chunk* a, const Chunk* b) {
#pragma unroll
        for (u32 q = 0; q < STEP_CHUNKS; q++) {
            Rows m;
            Columns n;
            m.read_chunk(a, down(), DOWN, q);
            n.read_chunk(b, across(), ACROSS, q);
#pragma unroll
            for (u32 t = 0; t < CHUNK; t++) {
                m.read_term(a, down(), DOWN, CHUNK * q + t);
                n.read_term(b, across(), ACROSS, CHUNK * q + t);
#pragma unroll
                for (u32 i = 0; i < PART_M; i++) {
#pragma unroll
                    for (u32 j = 0; j < PART_N; j++) at[i][j] = fmaf(m(i, t), n(j, t), at[i][j]);
                }
            }
        }
    }

    // Writes this thread's sums to their places.
    __device__ __forceinline__ void put(float (*lines)[LINE]) const {
#pragma unroll
        for (u32 i = 0; i < PART_M; i++) {
            float* line = lines[Rows::row(down(), DOWN, i)];
            if constexpr (B::ALONG) {
#pragma unroll
                for (u32 j = 0; j < PART_N; j++) line[Columns::row(across(), ACROSS, j)] = at[i][j];
            } else {
#pragma unroll
                for (u32 j = 0; j < PART_N; j += 4) {
                    store(&line[Columns::row(across(), ACROSS, j)],
                          Vector<4>{{at[i][j], at[i][j + 1], at[i][j + 2], at[i][j + 3]}});
                }
            }
        }
    }
};

#endif

// The main loop: `steps` steps of TILE_K terms.
template <class A, class B, class Sums> __device__ __forceinline__ void multiply(A& a, B& b, u32 steps, Sums& sums) {
    constexpr u32 STAGE = A::CHUNKS + B::CHUNKS;
    static_assert(STAGES * STAGE * sizeof(Chunk) <= SHARED, "the stages fit");
    auto copy = [&](u32 step, u32 stage) {
        if (step < steps) {
            a.copy(shared + stage * STAGE, stage);
            b.copy(shared + stage * STAGE + A::CHUNKS, stage);
        }
        // Past the end too: every step waits for the same number of groups.
        close_copies();
    };
    for (u32 step = 0; step + 1 < STAGES; step++) copy(step, step);
    u32 stage = 0, filled = STAGES - 1;
    for (u32 step = 0; step < steps; step++) {
        Chunk* tile = shared + stage * STAGE;
        wait_for_copies<STAGES - 2>();
        a.settle(tile, stage);
        b.settle(tile + A::CHUNKS, stage);
        __syncthreads();
        copy(step + STAGES - 1, filled);
        sums.add(tile, tile + A::CHUNKS);
        stage = stage + 1 == STAGES ? 0 : stage + 1;
        filled = filled + 1 == STAGES ? 0 : filled + 1;
    }
}

// Calls take(m, v) with the sums of this thread's columns, row by row.
template <class Sums, class Take> __device__ __forceinline__ void hand_out(const Sums& sums, Take take) {
    float (*lines)[LINE] = reinterpret_cast<float (*)[LINE]>(shared);
    __syncthreads();
    sums.put(lines);
    __syncthreads();
#pragma unroll 2
    for (u32 m = handed_row(); m < TILE_M; m += HANDED_ROWS) take(m, load<CHUNK>(&lines[m][handed_column()]));
}
