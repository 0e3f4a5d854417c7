// SiLU, GELU and QuickGELU, element by element, in f32.
#include "../cuda/device.cuh"

template <class T, float F(float)>
__device__ void map(const T* x, T* y, long long n) {
    for (long long i = device::first_index(); i < n; i += device::index_step()) y[i] = device::narrow<T>(F(device::widen(x[i])));
}

__device__ inline float quick_gelu(float x) { return x / (1.0f + expf(-1.702f * x)); }

#define ENTRIES(type, T)                                                                                                \
    extern "C" __global__ void silu_##type(const T* x, T* y, long long n) { map<T, device::silu>(x, y, n); }           \
    extern "C" __global__ void gelu_erf_##type(const T* x, T* y, long long n) { map<T, device::gelu>(x, y, n); }       \
    extern "C" __global__ void quick_gelu_##type(const T* x, T* y, long long n) { map<T, quick_gelu>(x, y, n); }
FOR_EACH_TYPE(ENTRIES)
