// What the kernels share: number types, reductions, and the tensor cores' operations.
//
// The same source is compiled by nvcc, and by a C++ compiler against on_cpu/cuda_on_cpu.hpp, which runs it
// without a GPU. What only PTX can say stands here, behind a function that the other side has too.
#pragma once

#ifdef CUDA_ON_CPU
#include "cuda_on_cpu.hpp"
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <stdint.h>

namespace device {

// C[16, 8] += A[16, 16] B[16, 8], f32 sums; the fragments are those of PTX's mma.m16n8k16.
__device__ inline void mma(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], __half) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

__device__ inline void mma(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], __nv_bfloat16) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Four 8 x 8 matrices of 16-bit values from shared memory: lane l gives the address of row l % 8 of matrix
// l / 8, each 16 bytes, aligned; it receives of every matrix row l / 4, columns 2 (l % 4) and the next.
__device__ inline void load_matrices(uint32_t (&r)[4], const void* row) {
    uint32_t address = (uint32_t)__cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(address) : "memory");
}

// The same, each matrix transposed on the way.
__device__ inline void load_matrices_transposed(uint32_t (&r)[4], const void* row) {
    uint32_t address = (uint32_t)__cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(address) : "memory");
}

// Begins to copy 16 bytes from global to shared memory, or zeros there; both addresses are aligned. They
// have arrived after wait<0>, for other threads after a barrier more.
__device__ inline void copy_16_bytes(void* shared, const void* global, bool valid) {
    uint32_t address = (uint32_t)__cvta_generic_to_shared(shared);
    int bytes = valid ? 16 : 0;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(global), "r"(bytes) : "memory");
}

// Ends a group of copies.
__device__ inline void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until all but the last N groups have arrived.
template <int N>
__device__ inline void wait_for_copies() {
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

}  // namespace device
#endif

namespace device {

using f16 = __half;
using bf16 = __nv_bfloat16;

__device__ inline float widen(float x) { return x; }
__device__ inline float widen(f16 x) { return __half2float(x); }
__device__ inline float widen(bf16 x) { return __bfloat162float(x); }

template <class T> __device__ inline T narrow(float x);
template <> __device__ inline float narrow<float>(float x) { return x; }
template <> __device__ inline f16 narrow<f16>(float x) { return __float2half_rn(x); }
template <> __device__ inline bf16 narrow<bf16>(float x) { return __float2bfloat16_rn(x); }

// Two 16-bit values as a fragment holds them: the first in the lower half.
template <class T>
__device__ inline uint32_t pack(T low, T high) {
    union { T values[2]; uint32_t bits; } both = {{low, high}};
    return both.bits;
}

template <class T>
__device__ inline uint32_t pack(float low, float high) { return pack<T>(narrow<T>(low), narrow<T>(high)); }

// The sum over the block, in every thread. partial: 32 floats of shared memory. The block is whole warps.
__device__ inline float block_sum(float x, float* partial) {
    for (int offset = 16; offset > 0; offset /= 2) x += __shfl_xor_sync(0xffffffffu, x, offset);
    if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = x;
    __syncthreads();
    float sum = 0.0f;
    for (unsigned warp = 0; warp < blockDim.x / 32; warp++) sum += partial[warp];
    __syncthreads();  // partial may be written again
    return sum;
}

__device__ inline float silu(float x) { return x / (1.0f + expf(-x)); }
__device__ inline float gelu(float x) { return 0.5f * x * (1.0f + erff(x * 0.70710678118654752f)); }

// The slope of x sigmoid(a x).
__device__ inline float sigmoid_slope(float x, float a) {
    float e = expf(-fabsf(a * x)), near = 1.0f / (1.0f + e), far = e / (1.0f + e);
    float sigmoid = x >= 0.0f ? near : far, rest = x >= 0.0f ? far : near;
    return sigmoid + a * x * (sigmoid * rest);
}
__device__ inline float silu_slope(float x) { return sigmoid_slope(x, 1.0f); }
__device__ inline float gelu_slope(float x) {
    return 0.5f * (1.0f + erff(x * 0.70710678118654752f)) + x * expf(-0.5f * x * x) * 0.39894228040143268f;
}

// The first index of this thread and how far on its next one is, over a grid of one dimension.
__device__ inline long long first_index() { return (long long)blockIdx.x * blockDim.x + threadIdx.x; }
__device__ inline long long index_step() { return (long long)gridDim.x * blockDim.x; }

}  // namespace device

// An entry point for every number type: FOR_EACH_TYPE(M) is M(f32, float) M(f16, __half) M(bf16, __nv_bfloat16).
#define FOR_EACH_TYPE(M) M(f32, float) M(f16, __half) M(bf16, __nv_bfloat16)
#define FOR_EACH_HALF_TYPE(M) M(f16, __half) M(bf16, __nv_bfloat16)
