// What cuBLAS leaves: the bias, added to every row of the product [rows, n].
#include "../cuda/device.cuh"

template <class T>
__device__ void add_bias(const T* x, const float* bias, T* y, int n, long long outputs) {
    for (long long i = device::first_index(); i < outputs; i += device::index_step())
        y[i] = device::narrow<T>(device::widen(x[i]) + bias[i % n]);
}

#define ENTRIES(type, T)                                                                                                    \
    extern "C" __global__ void add_bias_##type(const T* x, const float* bias, T* y, int n, long long outputs) {            \
        add_bias(x, bias, y, n, outputs);                                                                                   \
    }
FOR_EACH_TYPE(ENTRIES)
