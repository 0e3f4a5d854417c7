// Y = W + U D for W [out, in], U [out, rank], D [rank, in]: a block of 32 x 8 threads makes a tile of 32 x 32,
// each thread four rows of one column. The sums are f32, the result has the weight's type.
#include "../cuda/device.cuh"

template <class T>
__device__ void low_rank_update(const T* weight, const float* up, const float* down, T* y, int output, int input, int rank) {
    __shared__ float left[32][33], right[32][33];
    int lane = threadIdx.x % 32, part = threadIdx.x / 32;
    int column = blockIdx.x * 32 + lane, top = blockIdx.y * 32;
    float sum[4] = {};
    for (int start = 0; start < rank; start += 32) {
        for (int i = part; i < 32; i += 8) {
            left[i][lane] = top + i < output && start + lane < rank ? up[(long long)(top + i) * rank + start + lane] : 0.0f;
            right[i][lane] = start + i < rank && column < input ? down[(long long)(start + i) * input + column] : 0.0f;
        }
        __syncthreads();
        for (int k = 0; k < 32; k++)
            for (int i = 0; i < 4; i++) sum[i] += left[part + 8 * i][k] * right[k][lane];
        __syncthreads();
    }
    if (column >= input) return;
    for (int i = 0; i < 4; i++) {
        int row = top + part + 8 * i;
        if (row >= output) return;
        long long at = (long long)row * input + column;
        y[at] = device::narrow<T>(device::widen(weight[at]) + sum[i]);
    }
}

#define ENTRIES(type, T)                                                                                                             \
    extern "C" __global__ void low_rank_update_##type(const T* weight, const float* up, const float* down, T* y, int output,        \
                                                      int input, int rank) {                                                         \
        low_rank_update(weight, up, down, y, output, input, rank);                                                                   \
    }
FOR_EACH_TYPE(ENTRIES)
