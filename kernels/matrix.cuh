// matrix.cuh - matrices as operands of gemm.cuh: rows of numbers that are multiplied as they are.
//
// `rows` rows of `length` numbers, `stride` apart. With VECTOR = CHUNK, stride and length are multiples of CHUNK, and the
// matrix begins at a multiple of 16 bytes. What lies outside is zero.

#pragma once

#include "gemm.cuh"

// Numbers as they are.
__device__ __forceinline__ Pending plain(const Element* x) { return {x, nullptr, nullptr, IDENTITY}; }

// The matrix's rows are the tile's, its numbers are terms: neighbours along the sum.
template <u32 WIDTH> struct RowsAlong : Source {
    typedef Along<WIDTH> Tile;
    ValueReader reader;
    u32 rows, length, stride, row, term;

    // The tile's rows from `row` on, terms from `term` on.
    __device__ __forceinline__ RowsAlong(const Element* matrix, u32 rows, u32 length, u32 stride, u32 row, u32 term)
        : reader(plain(matrix)), rows(rows), length(length), stride(stride), row(row), term(term + Tile::chunk() * CHUNK) {}

    __device__ __forceinline__ bool find(u32 i, u64& place) const {
        u32 at = row + Tile::line(i);
        place = (u64)at * stride + term + element;
        return (at < rows) & (term + element < length);
    }

    __device__ __forceinline__ void next() { term += TILE_K; }
};

// The matrix's rows are terms, its numbers are the tile's rows or columns: neighbours across the sum.
template <u32 WIDTH> struct RowsAcross : Source {
    typedef Across<WIDTH> Tile;
    ValueReader reader;
    u32 rows, length, stride, column, term;

    // The tile's columns from `column` on, terms from `term` on.
    __device__ __forceinline__ RowsAcross(const Element* matrix, u32 rows, u32 length, u32 stride, u32 column, u32 term)
        : reader(plain(matrix)), rows(rows), length(length), stride(stride), column(column + Tile::chunk() * CHUNK),
          term(term) {}

    __device__ __forceinline__ bool find(u32 i, u64& place) const {
        u32 at = term + Tile::line(i);
        place = (u64)at * stride + column + element;
        return (at < rows) & (column + element < length);
    }

    __device__ __forceinline__ void next() { term += TILE_K; }
};
