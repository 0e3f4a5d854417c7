/* cuDNN's functions that cudnn.rs calls, for its tests: they check what they are told, and compute f32 in the CPU's memory.
   Signatures and numbers are those of cuDNN's API reference. */
#include <stddef.h>
#include <stdlib.h>

enum { OK = 0, BAD = 1, NO_STREAM = 2, HALVES = 3 };
enum { HANDLE = 11, TENSOR = 12, FILTER = 13, CONVOLUTION = 14 };

typedef struct {
    int kind, type, size[4];
    int padding, stride, math;
} Object;

typedef struct {
    int algorithm, status;
    float time;
    size_t memory;
    int determinism, math, reserved[3];
} Performance;

const char *cudnnGetErrorString(int status) {
    return status == NO_STREAM ? "no stream" : status == HALVES ? "halves are for a GPU" : "a bad argument";
}

static int make(Object **object, int kind) {
    *object = calloc(1, sizeof **object);
    (*object)->kind = kind;
    return OK;
}

static int end(Object *object, int kind) {
    if (object->kind != kind) abort();
    object->kind = 0;
    free(object);
    return OK;
}

int cudnnCreate(Object **o) { return make(o, HANDLE); }
int cudnnDestroy(Object *o) { return end(o, HANDLE); }
int cudnnSetStream(Object *o, void *stream) { return o->kind != HANDLE ? BAD : stream ? OK : NO_STREAM; }
int cudnnCreateTensorDescriptor(Object **o) { return make(o, TENSOR); }
int cudnnDestroyTensorDescriptor(Object *o) { return end(o, TENSOR); }
int cudnnCreateFilterDescriptor(Object **o) { return make(o, FILTER); }
int cudnnDestroyFilterDescriptor(Object *o) { return end(o, FILTER); }
int cudnnCreateConvolutionDescriptor(Object **o) { return make(o, CONVOLUTION); }
int cudnnDestroyConvolutionDescriptor(Object *o) { return end(o, CONVOLUTION); }

static int set(Object *o, int kind, int format, int type, int a, int b, int c, int d) {
    if (o->kind != kind || format != 0 || (type != 0 && type != 2 && type != 9)) return BAD;
    o->type = type;
    o->size[0] = a, o->size[1] = b, o->size[2] = c, o->size[3] = d;
    return OK;
}

int cudnnSetTensor4dDescriptor(Object *o, int format, int type, int n, int c, int h, int w) {
    return set(o, TENSOR, format, type, n, c, h, w);
}

int cudnnSetFilter4dDescriptor(Object *o, int type, int format, int k, int c, int h, int w) {
    return set(o, FILTER, format, type, k, c, h, w);
}

int cudnnSetConvolution2dDescriptor(Object *o, int pad_h, int pad_w, int u, int v, int dilation_h, int dilation_w, int mode, int type) {
    if (o->kind != CONVOLUTION || pad_h != pad_w || u != v || dilation_h != 1 || dilation_w != 1 || mode != 1 || type != 0) return BAD;
    o->padding = pad_h;
    o->stride = u;
    return OK;
}

int cudnnSetConvolutionMathType(Object *o, int math) {
    if (o->kind != CONVOLUTION) return BAD;
    o->math = math;
    return OK;
}

static int times_asked;
int timesAsked(void) { return times_asked; }

int cudnnGetConvolutionForwardAlgorithm_v7(Object *handle, Object *x, Object *w, Object *c, Object *y, int asked, int *found, Performance *p) {
    if (handle->kind != HANDLE || x->kind != TENSOR || w->kind != FILTER || c->kind != CONVOLUTION || y->kind != TENSOR || asked < 4) return BAD;
    if (c->math != (x->type == 0 ? 3 : 1)) return BAD;
    times_asked++;
    p[0] = (Performance){.algorithm = 90, .status = 9};                                       /* not supported */
    p[1] = (Performance){.algorithm = 91, .memory = (size_t)1 << 40, .math = c->math};        /* too much memory */
    p[2] = (Performance){.algorithm = x->type == 0 ? 92 : 6, .memory = 64, .math = 2};        /* may convert f32 */
    p[3] = (Performance){.algorithm = 6, .memory = 64, .math = c->math};
    *found = 4;
    return OK;
}

int cudnnConvolutionForward(Object *handle, const float *alpha, Object *xd, const float *x, Object *wd, const float *w, Object *c, int algorithm,
                            void *workspace, size_t size, const float *beta, Object *yd, float *y) {
    if (handle->kind != HANDLE || *alpha != 1 || *beta != 0 || algorithm != 6 || size != 64) return BAD;
    if (xd->type != wd->type || xd->type != yd->type) return BAD;
    if (xd->type != 0) return HALVES;
    if (!workspace) return BAD;
    const int *xs = xd->size, *ws = wd->size, *ys = yd->size;
    if (xs[1] != ws[1] || ys[1] != ws[0] || ys[0] != xs[0]) return BAD;
    if (ys[2] != (xs[2] + 2 * c->padding - ws[2]) / c->stride + 1 || ys[3] != (xs[3] + 2 * c->padding - ws[3]) / c->stride + 1) return BAD;
    for (int n = 0; n < ys[0]; n++)
        for (int o = 0; o < ys[1]; o++)
            for (int i = 0; i < ys[2]; i++)
                for (int j = 0; j < ys[3]; j++) {
                    double sum = 0;
                    for (int k = 0; k < ws[1]; k++)
                        for (int a = 0; a < ws[2]; a++)
                            for (int b = 0; b < ws[3]; b++) {
                                int r = i * c->stride + a - c->padding, s = j * c->stride + b - c->padding;
                                if (r >= 0 && s >= 0 && r < xs[2] && s < xs[3])
                                    sum += (double)x[((n * xs[1] + k) * xs[2] + r) * xs[3] + s] * w[((o * ws[1] + k) * ws[2] + a) * ws[3] + b];
                            }
                    y[((n * ys[1] + o) * ys[2] + i) * ys[3] + j] = (float)sum;
                }
    return OK;
}

int cudnnAddTensor(Object *handle, const float *alpha, Object *bd, const float *b, const float *beta, Object *yd, float *y) {
    const int *bs = bd->size, *ys = yd->size;
    if (handle->kind != HANDLE || *alpha != 1 || *beta != 1 || bd->type != yd->type) return BAD;
    if (bs[0] != 1 || bs[1] != ys[1] || bs[2] != 1 || bs[3] != 1) return BAD;
    for (int n = 0; n < ys[0]; n++)
        for (int o = 0; o < ys[1]; o++)
            for (int i = 0; i < ys[2] * ys[3]; i++) y[(n * ys[1] + o) * ys[2] * ys[3] + i] += b[o];
    return OK;
}
