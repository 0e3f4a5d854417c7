// A sum of tensors, each times a number; of those after the first, where that is asked for, their differences from it. Pointers
// that are null end the sum.
#include "../cuda/device.cuh"

template <class T>
__device__ void linear_combination(const T* const (&x)[5], const float (&factors)[5], int of_differences, T* y, long long values) {
    for (long long i = device::first_index(); i < values; i += device::index_step()) {
        float first = device::widen(x[0][i]), less = of_differences ? first : 0.0f, sum = first * factors[0];
#pragma unroll  // or pointers and factors would not be in registers
        for (int j = 1; j < 5; j++)
            if (x[j]) sum += (device::widen(x[j][i]) - less) * factors[j];
        y[i] = device::narrow<T>(sum);
    }
}

#define ENTRIES(type, T)                                                                                                     \
    extern "C" __global__ void linear_combination_##type(const T* x0, const T* x1, const T* x2, const T* x3, const T* x4,   \
                                                         float a0, float a1, float a2, float a3, float a4,                  \
                                                         int of_differences, T* y, long long values) {                      \
        linear_combination<T>({x0, x1, x2, x3, x4}, {a0, a1, a2, a3, a4}, of_differences, y, values);                        \
    }
FOR_EACH_TYPE(ENTRIES)
