// Nearest-neighbour resize of planes [h, w] to [height, width].
#include "../cuda/device.cuh"

template <class T>
__device__ void upsample(const T* x, T* y, int h, int w, int height, int width, long long outputs) {
    for (long long i = device::first_index(); i < outputs; i += device::index_step()) {
        long long column = i % width, row = i / width % height, plane = i / width / height;
        y[i] = x[(plane * h + row * h / height) * w + column * w / width];
    }
}

// The pixels Y with floor(Y h / height) = row are those from ceil(row height / h) to the next row's.
template <class T>
__device__ void upsample_backward(const T* upstream, T* dx, int h, int w, int height, int width, long long values) {
    for (long long i = device::first_index(); i < values; i += device::index_step()) {
        long long column = i % w, row = i / w % h, plane = i / w / h;
        long long top = (row * height + h - 1) / h, bottom = ((row + 1) * height + h - 1) / h;
        long long left = (column * width + w - 1) / w, right = ((column + 1) * width + w - 1) / w;
        float sum = 0.0f;
        for (long long y = top; y < bottom; y++)
            for (long long x = left; x < right; x++) sum += device::widen(upstream[(plane * height + y) * width + x]);
        dx[i] = device::narrow<T>(sum);
    }
}

#define ENTRIES(type, T)                                                                                                            \
    extern "C" __global__ void upsample_nearest2d_##type(const T* x, T* y, int h, int w, int height, int width, long long outputs) { \
        upsample(x, y, h, w, height, width, outputs);                                                                               \
    }                                                                                                                               \
    extern "C" __global__ void upsample_nearest2d_backward_##type(const T* upstream, T* dx, int h, int w, int height, int width,   \
                                                                  long long values) {                                               \
        upsample_backward(upstream, dx, h, w, height, width, values);                                                               \
    }
FOR_EACH_TYPE(ENTRIES)
