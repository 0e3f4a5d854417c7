// Flash attention (Dao, "FlashAttention-2", arXiv 2307.08691): the scores of a block of queries against a block of keys
// are never in memory; the softmax runs with a maximum and a sum that are corrected as keys go by.
#include "../cuda/device.cuh"

// [B, H, L, D] somewhere in memory, the values of a row one after the other.
struct Strides {
    long long batch, head, row;
};

// An additive mask seen as [B, H, Lq, Lk]; the stride of a broadcast dimension is 0. No mask: values is null.
struct Mask {
    const float* values;
    long long batch, head, query, key;

    __device__ float at(int query_number, int key_number) const {
        return values ? values[query_number * query + key_number * key] : 0.0f;
    }
};

struct Sizes {
    int queries, keys, head_dim, value_dim;
};

constexpr float LOG2_E = 1.4426950408889634f;

// On the tensor cores. A block of 4 warps has 64 queries of one head, each warp 16; keys come in tiles of KEYS, the next
// tile is copied while one is used. WIDTH: the head's width and the values', made up to a multiple of 16 with zeros.
// aligned: rows of k and v can be copied in pieces of 16 bytes.
template <class T, int WIDTH, int KEYS>
__device__ void on_tensor_cores(const T* q, const T* k, const T* v, Mask mask, T* y, Strides qs, Strides ks, Strides vs, Sizes s,
                                float scale, int aligned) {
    constexpr int ROW = WIDTH + 8;  // eight more, so that the rows begin in different banks
    __shared__ __align__(16) T keys[2][KEYS][ROW];
    __shared__ __align__(16) T values[2][KEYS][ROW];
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    int head = blockIdx.y, batch = blockIdx.z;
    q += batch * qs.batch + head * qs.head;
    k += batch * ks.batch + head * ks.head;
    v += batch * vs.batch + head * vs.head;
    if (mask.values) mask.values += batch * mask.batch + head * mask.head;

    auto copy = [&](T (&to)[KEYS][ROW], const T* from, long long row_stride, int width, int start) {
        for (int i = threadIdx.x; i < KEYS * (WIDTH / 8); i += 128) {
            int key = i / (WIDTH / 8), column = i % (WIDTH / 8) * 8;
            const T* row = from + (start + key) * row_stride + column;
            bool there = start + key < s.keys;
            if (aligned) {
                bool valid = there && column < width;
                device::copy_16_bytes(&to[key][column], valid ? row : from, valid);
            } else {
                for (int j = 0; j < 8; j++) to[key][column + j] = there && column + j < width ? row[j] : device::narrow<T>(0.0f);
            }
        }
    };
    auto copy_tile = [&](int buffer, int start) {
        copy(keys[buffer], k, ks.row, s.head_dim, start);
        copy(values[buffer], v, vs.row, s.value_dim, start);
        device::commit_copies();
    };

    copy_tile(0, 0);
    // The rows of this thread's fragments: lane / 4 and eight on.
    int query[2] = {(int)blockIdx.x * 64 + warp * 16 + lane / 4, (int)blockIdx.x * 64 + warp * 16 + lane / 4 + 8};
    uint32_t left[WIDTH / 16][4];
    for (int i = 0; i < WIDTH / 16; i++)
        for (int part = 0; part < 4; part++) {
            int row = query[part % 2], column = i * 16 + part / 2 * 8 + lane % 4 * 2;
            T pair[2];
            for (int j = 0; j < 2; j++)
                pair[j] = row < s.queries && column + j < s.head_dim ? q[row * qs.row + column + j] : device::narrow<T>(0.0f);
            left[i][part] = device::pack(pair[0], pair[1]);
        }

    float result[WIDTH / 8][4] = {}, highest[2] = {-INFINITY, -INFINITY}, total[2] = {};
    for (int start = 0, buffer = 0; start < s.keys; start += KEYS, buffer ^= 1) {
        if (start + KEYS < s.keys) {
            copy_tile(buffer ^ 1, start + KEYS);
            device::wait_for_copies<1>();
        } else {
            device::wait_for_copies<0>();
        }
        __syncthreads();

        float score[KEYS / 8][4] = {};
        for (int i = 0; i < WIDTH / 16; i++)
            for (int n = 0; n < KEYS / 16; n++) {
                uint32_t b[4];
                device::load_matrices(b, &keys[buffer][n * 16 + lane / 16 * 8 + lane % 8][i * 16 + lane / 8 % 2 * 8]);
                uint32_t first[2] = {b[0], b[1]}, second[2] = {b[2], b[3]};
                device::mma(score[2 * n], left[i], first, T());
                device::mma(score[2 * n + 1], left[i], second, T());
            }

        float above[2] = {highest[0], highest[1]};
        for (int n = 0; n < KEYS / 8; n++)
            for (int i = 0; i < 4; i++) {
                int row = query[i / 2], key = start + n * 8 + lane % 4 * 2 + i % 2;
                bool there = row < s.queries && key < s.keys;
                score[n][i] = there ? (score[n][i] * scale + mask.at(row, key)) * LOG2_E : -INFINITY;
                above[i / 2] = fmaxf(above[i / 2], score[n][i]);
            }
        float correction[2];
        for (int r = 0; r < 2; r++) {
            above[r] = fmaxf(above[r], __shfl_xor_sync(0xffffffffu, above[r], 1));
            above[r] = fmaxf(above[r], __shfl_xor_sync(0xffffffffu, above[r], 2));
            float from = above[r] == -INFINITY ? 0.0f : above[r];  // while every key is hidden
            correction[r] = exp2f(highest[r] - from);
            highest[r] = above[r];
            above[r] = from;
            total[r] *= correction[r];
        }
        for (int n = 0; n < WIDTH / 8; n++)
            for (int i = 0; i < 4; i++) result[n][i] *= correction[i / 2];
        for (int n = 0; n < KEYS / 8; n++)
            for (int i = 0; i < 4; i++) {
                score[n][i] = exp2f(score[n][i] - above[i / 2]);
                total[i / 2] += score[n][i];
            }

        for (int n = 0; n < KEYS / 16; n++) {
            uint32_t a[4] = {device::pack<T>(score[2 * n][0], score[2 * n][1]), device::pack<T>(score[2 * n][2], score[2 * n][3]),
                             device::pack<T>(score[2 * n + 1][0], score[2 * n + 1][1]), device::pack<T>(score[2 * n + 1][2], score[2 * n + 1][3])};
            for (int i = 0; i < WIDTH / 16; i++) {
                uint32_t b[4];
                device::load_matrices_transposed(b, &values[buffer][n * 16 + lane % 16][i * 16 + lane / 16 * 8]);
                uint32_t first[2] = {b[0], b[1]}, second[2] = {b[2], b[3]};
                device::mma(result[2 * i], a, first, T());
                device::mma(result[2 * i + 1], a, second, T());
            }
        }
        __syncthreads();  // the next copies go where this tile was
    }

    for (int r = 0; r < 2; r++) {
        total[r] += __shfl_xor_sync(0xffffffffu, total[r], 1);
        total[r] += __shfl_xor_sync(0xffffffffu, total[r], 2);
    }
    for (int n = 0; n < WIDTH / 8; n++)
        for (int i = 0; i < 4; i++) {
            int row = query[i / 2], column = n * 8 + lane % 4 * 2 + i % 2;
            if (row >= s.queries || column >= s.value_dim) continue;
            float value = total[i / 2] == 0.0f ? 0.0f : result[n][i] / total[i / 2];
            y[(((long long)batch * s.queries + row) * gridDim.y + head) * s.value_dim + column] = device::narrow<T>(value);
        }
}

// Without tensor cores, in f32: for f32, and for heads wider than 160 (the VAE's one of 512). A block has 32 queries; SHARE
// threads share a query's 32 scores and its values. Widths go by in pieces of 32.
template <class T, int WIDTH, int SHARE>
__device__ void in_f32(const T* q, const T* k, const T* v, Mask mask, T* y, Strides qs, Strides ks, Strides vs, Sizes s, float scale) {
    __shared__ float left[32][33], right[32][33], weights[32][33];
    int row = threadIdx.x / SHARE, part = threadIdx.x % SHARE, query = blockIdx.x * 32 + row;
    int head = blockIdx.y, batch = blockIdx.z;
    q += batch * qs.batch + head * qs.head;
    k += batch * ks.batch + head * ks.head;
    v += batch * vs.batch + head * vs.head;
    if (mask.values) mask.values += batch * mask.batch + head * mask.head;

    // 32 rows from `start` on, 32 columns.
    auto piece = [&](float (&to)[32][33], const T* from, long long row_stride, int rows, int width, int start, int column) {
        for (int i = threadIdx.x / 32; i < 32; i += SHARE) {
            int lane = threadIdx.x % 32;
            bool there = start + i < rows && column + lane < width;
            to[i][lane] = there ? device::widen(from[(start + i) * row_stride + column + lane]) : 0.0f;
        }
    };

    float result[WIDTH / SHARE] = {}, highest = -INFINITY, total = 0.0f;
    for (int start = 0; start < s.keys; start += 32) {
        float score[32 / SHARE] = {};
        for (int column = 0; column < s.head_dim; column += 32) {
            piece(left, q, qs.row, s.queries, s.head_dim, blockIdx.x * 32, column);
            piece(right, k, ks.row, s.keys, s.head_dim, start, column);
            __syncthreads();
            for (int d = 0; d < 32; d++)
                for (int i = 0; i < 32 / SHARE; i++) score[i] += left[row][d] * right[part + SHARE * i][d];
            __syncthreads();
        }
        float above = highest;
        for (int i = 0; i < 32 / SHARE; i++) {
            int key = start + part + SHARE * i;
            score[i] = query < s.queries && key < s.keys ? score[i] * scale + mask.at(query, key) : -INFINITY;
            above = fmaxf(above, score[i]);
        }
        for (int other = 1; other < SHARE; other *= 2) above = fmaxf(above, __shfl_xor_sync(0xffffffffu, above, other));
        float from = above == -INFINITY ? 0.0f : above;  // while every key is hidden
        float correction = expf(highest - from);
        highest = above;
        total *= correction;
        for (int i = 0; i < 32 / SHARE; i++) {
            float weight = expf(score[i] - from);
            total += weight;
            weights[row][part + SHARE * i] = weight;
        }
#pragma unroll  // or `result` would not be in registers
        for (int column = 0; column < WIDTH; column += 32) {
            if (column >= s.value_dim) continue;
            piece(right, v, vs.row, s.keys, s.value_dim, start, column);
            __syncthreads();
            for (int i = 0; i < 32 / SHARE; i++) {
                float sum = result[column / SHARE + i] * correction;
                for (int key = 0; key < 32; key++) sum += weights[row][key] * right[key][part + SHARE * i];
                result[column / SHARE + i] = sum;
            }
            __syncthreads();
        }
    }
    for (int other = 1; other < SHARE; other *= 2) total += __shfl_xor_sync(0xffffffffu, total, other);
#pragma unroll
    for (int i = 0; i < WIDTH / SHARE; i++) {
        int column = i / (32 / SHARE) * 32 + part + i % (32 / SHARE) * SHARE;
        if (query >= s.queries || column >= s.value_dim) continue;
        float value = total == 0.0f ? 0.0f : result[i] / total;
        y[(((long long)batch * s.queries + query) * gridDim.y + head) * s.value_dim + column] = device::narrow<T>(value);
    }
}

#define PARAMETERS(T)                                                                                                                   \
    const T *q, const T *k, const T *v, const float *mask, T *y, long long q_batch, long long q_head, long long q_row, long long k_batch, \
        long long k_head, long long k_row, long long v_batch, long long v_head, long long v_row, long long mask_batch,                   \
        long long mask_head, long long mask_query, long long mask_key, int queries, int keys, int head_dim, int value_dim, float scale,   \
        int aligned
#define GIVEN                                                                                                                            \
    q, k, v, Mask{mask, mask_batch, mask_head, mask_query, mask_key}, y, Strides{q_batch, q_head, q_row}, Strides{k_batch, k_head, k_row}, \
        Strides{v_batch, v_head, v_row}, Sizes{queries, keys, head_dim, value_dim}, scale

#define TENSOR_CORE_ENTRY(type, T, WIDTH, KEYS)                                                                   \
    extern "C" __global__ void __launch_bounds__(128) attention_width##WIDTH##_##type(PARAMETERS(T)) {            \
        on_tensor_cores<T, WIDTH, KEYS>(GIVEN, aligned);                                                          \
    }
#define HALF_ENTRIES(type, T)            \
    TENSOR_CORE_ENTRY(type, T, 48, 64)   \
    TENSOR_CORE_ENTRY(type, T, 64, 64)   \
    TENSOR_CORE_ENTRY(type, T, 80, 64)   \
    TENSOR_CORE_ENTRY(type, T, 128, 32)  \
    TENSOR_CORE_ENTRY(type, T, 160, 32)
FOR_EACH_HALF_TYPE(HALF_ENTRIES)

#define F32_ENTRY(type, T, WIDTH, SHARE)                                                                                  \
    extern "C" __global__ void __launch_bounds__(32 * SHARE) attention_f32_width##WIDTH##_##type(PARAMETERS(T)) {         \
        in_f32<T, WIDTH, SHARE>(GIVEN);                                                                                   \
    }
#define ENTRIES(type, T)        \
    F32_ENTRY(type, T, 160, 4)  \
    F32_ENTRY(type, T, 512, 8)
FOR_EACH_TYPE(ENTRIES)
