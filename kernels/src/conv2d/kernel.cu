// Convolution as the product of the weights [O, K] with the patches [K, pixels of all samples], K = C·kH·kW.
// The patches are gathered tile by tile into shared memory and never whole (an implicit GEMM).
//
// Where the tiles are fewer than a GPU's multiprocessors, K is split: blocks of another z sum other elements of it, in f32 and to
// memory of their own, and a second launch adds the parts, always in the same order.
#include "../cuda/device.cuh"

struct Sizes {
    int batch, channels, height, width, out_channels, kernel_h, kernel_w, stride, padding, out_height, out_width;
};

// The pixel of the result that a thread gathers patches for, the same in every tile.
struct Pixel {
    long long sample;  // where its sample of x begins
    int row, column;   // of the patch's first element; may lie outside of x
    bool inside;
};

__device__ inline Pixel pixel_of(const Sizes& s, long long number) {
    long long plane = (long long)s.out_height * s.out_width, sample = number / plane;
    int p = (int)(number % plane);
    return {sample * s.channels * s.height * s.width, p / s.out_width * s.stride - s.padding, p % s.out_width * s.stride - s.padding,
            sample < s.batch};
}

// Element k of a pixel's patch. KERNEL: the kernel's height and width, or 0 where they are known only when it runs.
template <class T, int KERNEL>
__device__ inline T patch(const Sizes& s, const T* x, const Pixel& pixel, int k, int depth) {
    int h = KERNEL ? KERNEL : s.kernel_h, w = KERNEL ? KERNEL : s.kernel_w;
    int channel = k / (h * w), rest = k % (h * w), row = pixel.row + rest / w, column = pixel.column + rest % w;
    bool there = pixel.inside && k < depth && row >= 0 && row < s.height && column >= 0 && column < s.width;
    return there ? x[pixel.sample + ((long long)channel * s.height + row) * s.width + column] : device::narrow<T>(0.0f);
}

// The elements of K that a block sums: `length` of them, whole steps, or what is left.
struct Part {
    int start, end;
};

__device__ inline Part part_of(const Sizes& s, int length) {
    int depth = s.channels * s.kernel_h * s.kernel_w, start = blockIdx.z * length, left = depth - start;
    return {start, start + (left < length ? left : length)};
}

// What is added to the sums: a number for each output channel, and one for each channel of each sample; either may be null.
template <class T>
struct Added {
    const float* bias;
    const T* of_samples;

    // row: the sample's number times the channels, and the channel's.
    __device__ float to(float sum, int channel, long long row) const {
        sum += bias ? bias[channel] : 0.0f;
        return of_samples ? sum + device::widen(of_samples[row]) : sum;
    }
};

// Where a block's sums go: to the result, or, where it has summed a part of K, as the result lies to that part's memory.
template <class T>
struct Target {
    T* y;
    float* sums;

    __device__ void put(const Sizes& s, const Added<T>& added, long long pixel, int channel, float sum) const {
        long long plane = (long long)s.out_height * s.out_width, row = pixel / plane * s.out_channels + channel;
        long long i = row * plane + pixel % plane;
        if (sums)
            sums[blockIdx.z * (s.batch * s.out_channels * plane) + i] = sum;
        else
            y[i] = device::narrow<T>(added.to(sum, channel, row));
    }
};

// On the tensor cores: a block of 8 warps, 2 x 4, makes a tile of TILE output channels and TILE pixels; K goes by in
// steps of 32. While one step is multiplied, the next is read from memory into registers.
template <class T, int TILE, int KERNEL>
__device__ void on_tensor_cores(const T* x, const T* weight, Added<T> added, Target<T> to, Sizes s, int whole_rows, Part part) {
    constexpr int STEP = 32, THREADS = 256, M = TILE / 32, N = TILE / 32;  // m16 and n8 tiles of a warp
    constexpr int W_ROW = STEP + 8, P_ROW = TILE + 8;  // eight more, so that the rows begin in different banks
    constexpr int EACH = TILE * STEP / THREADS;
    __shared__ __align__(16) T weights[2][TILE][W_ROW];
    __shared__ __align__(16) T patches[2][STEP][P_ROW];
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    int first_channel = blockIdx.y * TILE, depth = s.channels * s.kernel_h * s.kernel_w;
    long long first_pixel = (long long)blockIdx.x * TILE;
    Pixel pixel = pixel_of(s, first_pixel + threadIdx.x % TILE);

    __align__(16) T w_next[EACH];
    T p_next[EACH];
    auto read = [&](int start) {
        for (int i = 0; i < EACH / 8; i++) {
            int at = (threadIdx.x + i * THREADS) * 8, channel = first_channel + at / STEP, k = start + at % STEP;
            const T* from = weight + (long long)channel * depth + k;
            bool whole = channel < s.out_channels && k + 8 <= depth;
            if (whole_rows && whole) {
                *(uint4*)&w_next[i * 8] = *(const uint4*)from;
            } else {
                for (int j = 0; j < 8; j++)
                    w_next[i * 8 + j] = channel < s.out_channels && k + j < depth ? from[j] : device::narrow<T>(0.0f);
            }
        }
        for (int i = 0; i < EACH; i++) p_next[i] = patch<T, KERNEL>(s, x, pixel, start + threadIdx.x / TILE + i * (THREADS / TILE), depth);
    };
    auto keep = [&](int buffer) {
        for (int i = 0; i < EACH / 8; i++) {
            int at = (threadIdx.x + i * THREADS) * 8;
            *(uint4*)&weights[buffer][at / STEP][at % STEP] = *(const uint4*)&w_next[i * 8];
        }
        for (int i = 0; i < EACH; i++) patches[buffer][threadIdx.x / TILE + i * (THREADS / TILE)][threadIdx.x % TILE] = p_next[i];
    };

    float sum[M][N][4] = {};
    int top = warp / 4 * (TILE / 2), left = warp % 4 * (TILE / 4);
    read(part.start);
    keep(0);
    __syncthreads();
    for (int start = part.start, buffer = 0; start < part.end; start += STEP, buffer ^= 1) {
        if (start + STEP < part.end) read(start + STEP);
        for (int k = 0; k < STEP; k += 16) {
            uint32_t a[M][4], b[N / 2][4];
            for (int m = 0; m < M; m++) device::load_matrices(a[m], &weights[buffer][top + m * 16 + lane % 16][k + lane / 16 * 8]);
            for (int n = 0; n < N / 2; n++)
                device::load_matrices_transposed(b[n], &patches[buffer][k + lane % 16][left + n * 16 + lane / 16 * 8]);
            for (int m = 0; m < M; m++)
                for (int n = 0; n < N; n++) {
                    uint32_t right[2] = {b[n / 2][n % 2 * 2], b[n / 2][n % 2 * 2 + 1]};
                    device::mma(sum[m][n], a[m], right, T());
                }
        }
        if (start + STEP < part.end) keep(buffer ^ 1);
        __syncthreads();
    }

#pragma unroll  // or the sums would not be in registers
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
            int channel = first_channel + top + m * 16 + lane / 4 + i / 2 * 8;
            if (channel >= s.out_channels) continue;
#pragma unroll
            for (int n = 0; n < N; n++) {
                long long number = first_pixel + left + n * 8 + lane % 4 * 2 + i % 2;
                if (number < (long long)s.batch * s.out_height * s.out_width)
                    to.put(s, added, number, channel, sum[m][n][i]);
            }
        }
}

// In f32: a block of 256 threads makes a tile of 64 output channels and 64 pixels, each thread 4 x 4.
template <int KERNEL>
__device__ void in_f32(const float* x, const float* weight, Added<float> added, Target<float> to, Sizes s, Part part) {
    constexpr int TILE = 64, STEP = 16;
    __shared__ float weights[STEP][TILE + 1], patches[STEP][TILE];
    int first_channel = blockIdx.y * TILE, depth = s.channels * s.kernel_h * s.kernel_w;
    long long first_pixel = (long long)blockIdx.x * TILE;
    Pixel pixel = pixel_of(s, first_pixel + threadIdx.x % TILE);
    int row = threadIdx.x / 16, column = threadIdx.x % 16;
    float sum[4][4] = {};
    for (int start = part.start; start < part.end; start += STEP) {
        for (int i = 0; i < 4; i++) {
            int k = start + threadIdx.x % STEP, c = threadIdx.x / STEP + i * 16, channel = first_channel + c;
            weights[threadIdx.x % STEP][c] = channel < s.out_channels && k < part.end ? weight[(long long)channel * depth + k] : 0.0f;
        }
        for (int i = 0; i < 4; i++) {
            int k = threadIdx.x / TILE + i * 4;
            patches[k][threadIdx.x % TILE] = patch<float, KERNEL>(s, x, pixel, start + k, part.end);
        }
        __syncthreads();
        for (int k = 0; k < STEP; k++)
            for (int i = 0; i < 4; i++)
                for (int j = 0; j < 4; j++) sum[i][j] += weights[k][row + 16 * i] * patches[k][column + 16 * j];
        __syncthreads();
    }
    for (int i = 0; i < 4; i++) {
        int channel = first_channel + row + 16 * i;
        if (channel >= s.out_channels) continue;
        for (int j = 0; j < 4; j++) {
            long long number = first_pixel + column + 16 * j;
            if (number < (long long)s.batch * s.out_height * s.out_width) to.put(s, added, number, channel, sum[i][j]);
        }
    }
}

// The result of a split over K: the parts' sums, the first part's first, and what is added.
template <class T>
__device__ void join(const float* sums, Added<T> added, T* y, int parts, long long values, long long plane, int channels) {
    for (long long i = device::first_index(); i < values; i += device::index_step()) {
        float sum = sums[i];
        for (int part = 1; part < parts; part++) sum += sums[part * values + i];
        long long row = i / plane;
        y[i] = device::narrow<T>(added.to(sum, (int)(row % channels), row));
    }
}

#define SIZES                                                                                                            \
    int batch, int channels, int height, int width, int out_channels, int kernel_h, int kernel_w, int stride, int padding, \
        int out_height, int out_width
#define GIVEN {batch, channels, height, width, out_channels, kernel_h, kernel_w, stride, padding, out_height, out_width}

// Registers are left for two blocks on a multiprocessor.
#define ENTRY(name, type, T, TILE, KERNEL)                                                                                       \
    extern "C" __global__ void __launch_bounds__(256, 2) conv2d_##name##_##type(                                                    \
        const T* x, const T* weight, const float* bias, const T* of_samples, T* y, float* sums, int length, int whole_rows, SIZES) { \
        Sizes s = GIVEN;                                                                                                        \
        on_tensor_cores<T, TILE, KERNEL>(x, weight, {bias, of_samples}, {y, sums}, s, whole_rows, part_of(s, length));            \
    }
#define ENTRIES(type, T)              \
    ENTRY(3x3_tile128, type, T, 128, 3) \
    ENTRY(3x3_tile64, type, T, 64, 3)   \
    ENTRY(1x1_tile128, type, T, 128, 1) \
    ENTRY(1x1_tile64, type, T, 64, 1)   \
    ENTRY(any_tile128, type, T, 128, 0) \
    ENTRY(any_tile64, type, T, 64, 0)
FOR_EACH_HALF_TYPE(ENTRIES)

#define F32_ENTRY(name, KERNEL)                                                                                                    \
    extern "C" __global__ void __launch_bounds__(256) conv2d_##name##_tile64_f32(                                                  \
        const float* x, const float* weight, const float* bias, const float* of_samples, float* y, float* sums, int length, int, SIZES) { \
        Sizes s = GIVEN;                                                                                                           \
        in_f32<KERNEL>(x, weight, {bias, of_samples}, {y, sums}, s, part_of(s, length));                                             \
    }
F32_ENTRY(3x3, 3)
F32_ENTRY(1x1, 1)
F32_ENTRY(any, 0)

#define JOIN_ENTRY(type, T)                                                                                                   \
    extern "C" __global__ void conv2d_join_##type(const float* sums, const float* bias, const T* of_samples, T* y, int parts, \
                                                  long long values, long long plane, int channels) {                          \
        join<T>(sums, {bias, of_samples}, y, parts, values, plane, channels);                                                 \
    }
FOR_EACH_TYPE(JOIN_ENTRY)
