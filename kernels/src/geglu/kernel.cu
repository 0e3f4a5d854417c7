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

#define ENTRIES(type, T) \
    extern "C" __global__ void geglu_##type(const T* x, T* y, long long n, long long outputs) { geglu(x, y, n, outputs); }
FOR_EACH_TYPE(ENTRIES)
