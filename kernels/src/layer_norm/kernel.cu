// Layer normalisation: a block for each row, which stays in a cache between the three passes.
#include "../cuda/device.cuh"

template <class T>
__device__ void layer_norm(const T* x, const float* weight, const float* bias, T* y, int n, float epsilon) {
    __shared__ float partial[32];
    x += (long long)blockIdx.x * n;
    y += (long long)blockIdx.x * n;
    float sum = 0.0f;
    for (int i = threadIdx.x; i < n; i += blockDim.x) sum += device::widen(x[i]);
    float mean = device::block_sum(sum, partial) / n;
    float squares = 0.0f;
    for (int i = threadIdx.x; i < n; i += blockDim.x) {
        float d = device::widen(x[i]) - mean;
        squares += d * d;
    }
    float scale = 1.0f / sqrtf(device::block_sum(squares, partial) / n + epsilon);
    for (int i = threadIdx.x; i < n; i += blockDim.x)
        y[i] = device::narrow<T>((device::widen(x[i]) - mean) * scale * weight[i] + bias[i]);
}

// With g = dy w: dx = (g - mean(g) - normed mean(g normed)) scale.
template <class T>
__device__ void layer_norm_backward(const T* x, const float* weight, const T* upstream, T* dx, int n, float epsilon) {
    __shared__ float partial[32];
    x += (long long)blockIdx.x * n;
    upstream += (long long)blockIdx.x * n;
    dx += (long long)blockIdx.x * n;
    float sum = 0.0f;
    for (int i = threadIdx.x; i < n; i += blockDim.x) sum += device::widen(x[i]);
    float mean = device::block_sum(sum, partial) / n;
    float squares = 0.0f;
    for (int i = threadIdx.x; i < n; i += blockDim.x) {
        float d = device::widen(x[i]) - mean;
        squares += d * d;
    }
    float scale = 1.0f / sqrtf(device::block_sum(squares, partial) / n + epsilon);
    float first = 0.0f, second = 0.0f;
    for (int i = threadIdx.x; i < n; i += blockDim.x) {
        float g = device::widen(upstream[i]) * weight[i];
        first += g;
        second += g * (device::widen(x[i]) - mean) * scale;
    }
    first = device::block_sum(first, partial) / n;
    second = device::block_sum(second, partial) / n;
    for (int i = threadIdx.x; i < n; i += blockDim.x) {
        float g = device::widen(upstream[i]) * weight[i];
        dx[i] = device::narrow<T>((g - first - (device::widen(x[i]) - mean) * scale * second) * scale);
    }
}

#define ENTRIES(type, T)                                                                                                                \
    extern "C" __global__ void layer_norm_##type(const T* x, const float* weight, const float* bias, T* y, int n, float epsilon) {     \
        layer_norm(x, weight, bias, y, n, epsilon);                                                                                     \
    }                                                                                                                                   \
    extern "C" __global__ void layer_norm_backward_##type(const T* x, const float* weight, const T* upstream, T* dx, int n,            \
                                                          float epsilon) {                                                              \
        layer_norm_backward(x, weight, upstream, dx, n, epsilon);                                                                       \
    }
FOR_EACH_TYPE(ENTRIES)
