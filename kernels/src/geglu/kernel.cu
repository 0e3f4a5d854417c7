// GEGLU: rows of 2n values to rows of n, the first half times GELU of the second.
#include "../cuda/device.cuh"

template <class T>
__device__ void geglu(const T* x, T* y, long long n, long long outputs) {
    for (long long i = device::first_index(); i < outputs; i += device::index_step()) {
        const T* row = x + i / n * 2 * n;
        long long column = i % n;
        y[i] = device::narrow<T>(device::widen(row[column]) * device::gelu(device::widen(row[n + column])));
    }
}

template <class T>
__device__ void geglu_backward(const T* x, const T* upstream, T* dx, long long n, long long pairs) {
    for (long long i = device::first_index(); i < pairs; i += device::index_step()) {
        long long first = i / n * 2 * n + i % n;
        float h = device::widen(x[first]), g = device::widen(x[first + n]), dy = device::widen(upstream[i]);
        dx[first] = device::narrow<T>(dy * device::gelu(g));
        dx[first + n] = device::narrow<T>(dy * h * device::gelu_slope(g));
    }
}

#define ENTRIES(type, T)                                                                                                     \
    extern "C" __global__ void geglu_##type(const T* x, T* y, long long n, long long outputs) { geglu(x, y, n, outputs); }  \
    extern "C" __global__ void geglu_backward_##type(const T* x, const T* upstream, T* dx, long long n, long long pairs) {  \
        geglu_backward(x, upstream, dx, n, pairs);                                                                          \
    }
FOR_EACH_TYPE(ENTRIES)
