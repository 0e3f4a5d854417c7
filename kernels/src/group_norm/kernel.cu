// Group normalisation in two kernels, so that a group as large as a VAE's is shared by many blocks: first
// the mean and the squared distances of every piece, then their union (Chan et al., "Updating Formulae and a
// Pairwise Algorithm for Computing Sample Variances", 1979) and the result.
//
// A grid is [pieces, groups of all samples]; a group's n values are contiguous, a piece is `length` of them.
#include "../cuda/device.cuh"

__device__ inline int piece_of(long long n, int length, int piece) {
    long long left = n - (long long)piece * length;
    return (int)(left < length ? left : length);
}

template <class T>
__device__ void moments(const T* x, float* found, long long n, int length) {
    __shared__ float partial[32];
    x += blockIdx.y * n + (long long)blockIdx.x * length;
    int count = piece_of(n, length, blockIdx.x);
    float sum = 0.0f;
    for (int i = threadIdx.x; i < count; i += blockDim.x) sum += device::widen(x[i]);
    float mean = device::block_sum(sum, partial) / count;
    float squares = 0.0f;
    for (int i = threadIdx.x; i < count; i += blockDim.x) {
        float d = device::widen(x[i]) - mean;
        squares += d * d;
    }
    squares = device::block_sum(squares, partial);
    if (threadIdx.x == 0) {
        float* mine = found + 2 * ((long long)blockIdx.y * gridDim.x + blockIdx.x);
        mine[0] = mean;
        mine[1] = squares;
    }
}

template <class T, bool SILU>
__device__ void normalise(const T* x, const float* weight, const float* bias, const float* found, T* y, long long n, int length,
                          long long pixels, int groups, float epsilon) {
    __shared__ float partial[32];
    found += 2 * (long long)blockIdx.y * gridDim.x;
    float sum = 0.0f;
    for (int i = threadIdx.x; i < gridDim.x; i += blockDim.x) sum += found[2 * i] * piece_of(n, length, i);
    float mean = device::block_sum(sum, partial) / n;
    float squares = 0.0f;
    for (int i = threadIdx.x; i < gridDim.x; i += blockDim.x) {
        float d = found[2 * i] - mean;
        squares += found[2 * i + 1] + d * d * piece_of(n, length, i);
    }
    float scale = 1.0f / sqrtf(device::block_sum(squares, partial) / n + epsilon);
    long long start = (long long)blockIdx.x * length, base = blockIdx.y * n + start;
    long long channels = n / pixels, channel = blockIdx.y % groups * channels;
    int count = piece_of(n, length, blockIdx.x);
    for (int i = threadIdx.x; i < count; i += blockDim.x) {
        long long c = channel + (start + i) / pixels;
        float normed = (device::widen(x[base + i]) - mean) * scale * weight[c] + bias[c];
        y[base + i] = device::narrow<T>(SILU ? device::silu(normed) : normed);
    }
}

// A block for each (sample, group) of n values. With g = dy (or dy silu'(y)) times w:
// dx = (g - mean(g) - normed mean(g normed)) scale.
template <class T, bool SILU>
__device__ void backward(const T* x, const float* parameters, const T* upstream, T* dx, long long n, long long pixels, int groups,
                         float epsilon) {
    __shared__ float partial[32];
    long long channels = n / pixels, channel = blockIdx.x % groups * channels;
    const float* weight = parameters + channel;
    const float* bias = weight + groups * channels;
    x += blockIdx.x * n;
    upstream += blockIdx.x * n;
    dx += blockIdx.x * n;
    float sum = 0.0f;
    for (long long i = threadIdx.x; i < n; i += blockDim.x) sum += device::widen(x[i]);
    float mean = device::block_sum(sum, partial) / n;
    float squares = 0.0f;
    for (long long i = threadIdx.x; i < n; i += blockDim.x) {
        float d = device::widen(x[i]) - mean;
        squares += d * d;
    }
    float scale = 1.0f / sqrtf(device::block_sum(squares, partial) / n + epsilon);
    float first = 0.0f, second = 0.0f;
    for (long long i = threadIdx.x; i < n; i += blockDim.x) {
        float normed = (device::widen(x[i]) - mean) * scale, w = weight[i / pixels];
        float g = device::widen(upstream[i]) * w;
        if (SILU) g *= device::silu_slope(normed * w + bias[i / pixels]);
        first += g;
        second += g * normed;
    }
    first = device::block_sum(first, partial) / n;
    second = device::block_sum(second, partial) / n;
    for (long long i = threadIdx.x; i < n; i += blockDim.x) {
        float normed = (device::widen(x[i]) - mean) * scale, w = weight[i / pixels];
        float g = device::widen(upstream[i]) * w;
        if (SILU) g *= device::silu_slope(normed * w + bias[i / pixels]);
        dx[i] = device::narrow<T>((g - first - normed * second) * scale);
    }
}

#define ENTRIES(type, T)                                                                                                           \
    extern "C" __global__ void group_norm_moments_##type(const T* x, float* found, long long n, int length) {                     \
        moments(x, found, n, length);                                                                                              \
    }                                                                                                                              \
    extern "C" __global__ void group_norm_##type(const T* x, const float* weight, const float* bias, const float* found, T* y,    \
                                                 long long n, int length, long long pixels, int groups, float epsilon) {          \
        normalise<T, false>(x, weight, bias, found, y, n, length, pixels, groups, epsilon);                                        \
    }                                                                                                                              \
    extern "C" __global__ void group_norm_silu_##type(const T* x, const float* weight, const float* bias, const float* found,     \
                                                      T* y, long long n, int length, long long pixels, int groups, float epsilon) { \
        normalise<T, true>(x, weight, bias, found, y, n, length, pixels, groups, epsilon);                                         \
    }                                                                                                                              \
    extern "C" __global__ void group_norm_backward_##type(const T* x, const float* parameters, const T* upstream, T* dx,          \
                                                          long long n, long long pixels, int groups, float epsilon) {             \
        backward<T, false>(x, parameters, upstream, dx, n, pixels, groups, epsilon);                                               \
    }                                                                                                                              \
    extern "C" __global__ void group_norm_silu_backward_##type(const T* x, const float* parameters, const T* upstream, T* dx,     \
                                                               long long n, long long pixels, int groups, float epsilon) {        \
        backward<T, true>(x, parameters, upstream, dx, n, pixels, groups, epsilon);                                                \
    }
FOR_EACH_TYPE(ENTRIES)
