// SiLU, GELU and QuickGELU, element by element, in f32.
#include "../cuda/device.cuh"

template <class T, float F(float)>
__device__ void map(const T* x, T* y, long long n) {
    for (long long i = device::first_index(); i < n; i += device::index_step()) y[i] = device::narrow<T>(F(device::widen(x[i])));
}

__device__ inline float quick_gelu(float x) { return x / (1.0f + expf(-1.702f * x)); }

// dx = dy f'(x)
template <class T, float SLOPE(float)>
__device__ void map_backward(const T* x, const T* upstream, T* dx, long long n) {
    for (long long i = device::first_index(); i < n; i += device::index_step())
        dx[i] = device::narrow<T>(device::widen(upstream[i]) * SLOPE(device::widen(x[i])));
}

__device__ inline float quick_gelu_slope(float x) { return device::sigmoid_slope(x, 1.702f); }

#define ENTRIES(type, T)                                                                                                \
    extern "C" __global__ void silu_##type(const T* x, T* y, long long n) { map<T, device::silu>(x, y, n); }           \
    extern "C" __global__ void gelu_erf_##type(const T* x, T* y, long long n) { map<T, device::gelu>(x, y, n); }       \
    extern "C" __global__ void quick_gelu_##type(const T* x, T* y, long long n) { map<T, quick_gelu>(x, y, n); }       \
    extern "C" __global__ void silu_backward_##type(const T* x, const T* upstream, T* dx, long long n) {               \
        map_backward<T, device::silu_slope>(x, upstream, dx, n);                                                       \
    }                                                                                                                  \
    extern "C" __global__ void gelu_erf_backward_##type(const T* x, const T* upstream, T* dx, long long n) {           \
        map_backward<T, device::gelu_slope>(x, upstream, dx, n);                                                       \
    }                                                                                                                  \
    extern "C" __global__ void quick_gelu_backward_##type(const T* x, const T* upstream, T* dx, long long n) {         \
        map_backward<T, quick_gelu_slope>(x, upstream, dx, n);                                                         \
    }
FOR_EACH_TYPE(ENTRIES)
