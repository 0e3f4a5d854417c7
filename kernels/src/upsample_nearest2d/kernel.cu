// Nearest-neighbour resize of planes [h, w] to [height, width].
#include "../cuda/device.cuh"

template <class T>
__device__ void upsample(const T* x, T* y, int h, int w, int height, int width, long long outputs) {
    for (long long i = device::first_index(); i < outputs; i += device::index_step()) {
        long long column = i % width, row = i / width % height, plane = i / width / height;
        y[i] = x[(plane * h + row * h / height) * w + column * w / width];
    }
}

#define ENTRIES(type, T)                                                                                                            \
    extern "C" __global__ void upsample_nearest2d_##type(const T* x, T* y, int h, int w, int height, int width, long long outputs) { \
        upsample(x, y, h, w, height, width, outputs);                                                                               \
    }
FOR_EACH_TYPE(ENTRIES)
