/* denoiser.c: a node library in C, to learn from and to copy.
 *
 *     cc -std=c11 -O2 -shared -fPIC -I nodes/abi -o libdenoiser.so tests/examples/denoiser.c -lm
 *     kosmograph check-plugin ./libdenoiser.so
 *
 * It has two nodes. CImageInvert is a picture in, a picture out. CAnalyticDenoiser gives a MODEL: an
 * object that a sampler of another library can call, here one whose prediction is known exactly.
 *
 * node.h is the specification; what it says is not repeated here.
 */
#include <math.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "node.h"

/* ---- What every node needs ------------------------------------------------------------------ */

static kg_str text(const char *s) {
  kg_str view = {s, strlen(s)};
  return view;
}

static int equals(kg_str a, const char *b) {
  return a.len == strlen(b) && (a.len == 0 || memcmp(a.ptr, b, a.len) == 0);
}

/* Says why the call fails, as by printf, and returns KG_ERROR. `input` may be "". */
static kg_status fail(const kg_context *context, const char *input, const char *format, ...) {
  char sentence[256];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(sentence, sizeof sentence, format, arguments);
  va_end(arguments);
  context->fail(context, text(input), text(sentence));
  return KG_ERROR;
}

static kg_status check_counts(const kg_context *context, const char *what, size_t n_inputs,
                              size_t n_outputs, size_t wanted_inputs, size_t wanted_outputs) {
  if (n_inputs == wanted_inputs && n_outputs == wanted_outputs) return KG_OK;
  return fail(context, "", "%s has %zu inputs and %zu outputs, but was called with %zu and %zu",
              what, wanted_inputs, wanted_outputs, n_inputs, n_outputs);
}

/* A number between min and max. A NaN is not. */
static kg_status read_number(const kg_context *context, const char *input, const kg_value *value,
                             double min, double max, double *number) {
  if (value->kind == KG_NONE) return fail(context, input, "FLOAT is missing");
  if (value->kind != KG_FLOAT) return fail(context, input, "a number is wanted");
  *number = value->as.number;
  if (*number >= min && *number <= max) return KG_OK;
  return fail(context, input, "%g is outside its range, %g to %g", *number, min, max);
}

/* An f32 tensor, as it is in the CPU's memory, with `ndim` axes, none of them empty. `axes` names them for
 * the person. */
static kg_status read_tensor(const kg_context *context, const char *input, const kg_value *value,
                             int32_t ndim, const char *axes, const DLTensor **tensor) {
  if (value->kind == KG_NONE) return fail(context, input, "a tensor %s is missing", axes);
  if (value->kind != KG_TENSOR) return fail(context, input, "a tensor %s is wanted", axes);
  const DLTensor *dl = kg_tensor_cpu(value->as.tensor);
  if (dl == NULL) return fail(context, input, "the tensor cannot be had in the CPU's memory");
  if (dl->dtype.code != kDLFloat || dl->dtype.bits != 32 || dl->dtype.lanes != 1)
    return fail(context, input, "the tensor holds %d-bit values of DLPack code %d, not f32",
                dl->dtype.bits, dl->dtype.code);
  if (dl->ndim != ndim)
    return fail(context, input, "the tensor has %d axes; %s is wanted", (int)dl->ndim, axes);
  for (int32_t axis = 0; axis < ndim; axis++)
    if (dl->shape[axis] <= 0) return fail(context, input, "axis %d of %s is empty", axis, axes);
  *tensor = dl;
  return KG_OK;
}

static int64_t count_of(const DLTensor *tensor) {
  int64_t count = 1;
  for (int32_t axis = 0; axis < tensor->ndim; axis++) count *= tensor->shape[axis];
  return count;
}

/* Element `i` in row-major order. Tensors need not be compact: a picture that was cropped or turned by
 * its maker comes with strides. */
static float element(const DLTensor *tensor, int64_t i) {
  const char *first = (const char *)tensor->data + tensor->byte_offset;
  int64_t offset = i;
  if (tensor->strides != NULL) {
    offset = 0;
    for (int32_t axis = tensor->ndim - 1; axis >= 0; axis--) {
      offset += i % tensor->shape[axis] * tensor->strides[axis];
      i /= tensor->shape[axis];
    }
  }
  return ((const float *)first)[offset];
}

/* A new tensor of the shape of another one, from the host's memory: nothing to free by hand. */
static kg_tensor *new_like(const kg_context *context, const DLTensor *tensor) {
  DLDataType f32 = {kDLFloat, 32, 1};
  return context->new_tensor(context, f32, tensor->ndim, tensor->shape);
}

static kg_status no_memory(const kg_context *context) {
  return fail(context, "", "there is no memory for the output");
}

/* Hands a tensor over: the one reference it was made with passes to the caller. */
static kg_status give_tensor(kg_value *output, kg_tensor *tensor) {
  output->kind = KG_TENSOR;
  output->as.tensor = tensor;
  return KG_OK;
}

/* ---- CImageInvert: (image IMAGE, strength FLOAT) → image IMAGE ------------------------------- */

static kg_status image_invert(const kg_context *context, const kg_value *inputs, size_t n_inputs,
                              kg_value *outputs, size_t n_outputs) {
  const DLTensor *image;
  double strength;
  if (check_counts(context, "CImageInvert", n_inputs, n_outputs, 2, 1) != KG_OK) return KG_ERROR;
  if (read_tensor(context, "image", &inputs[0], 4, "[B, H, W, C]", &image) != KG_OK) return KG_ERROR;
  if (read_number(context, "strength", &inputs[1], 0.0, 1.0, &strength) != KG_OK) return KG_ERROR;

  kg_tensor *inverted = new_like(context, image);
  if (inverted == NULL) return no_memory(context);
  float *pixels = inverted->dl->dl_tensor.data;
  int64_t pictures = image->shape[0], each = count_of(image) / pictures;
  for (int64_t picture = 0; picture < pictures; picture++) {
    if (context->progress(context, (uint64_t)picture, (uint64_t)pictures)) {
      inverted->base.release(&inverted->base);
      return KG_CANCELLED;
    }
    for (int64_t i = picture * each; i < (picture + 1) * each; i++) {
      float x = element(image, i);
      pixels[i] = x + (float)strength * (1.0f - 2.0f * x);
    }
  }
  return give_tensor(&outputs[0], inverted);
}

/* ---- An object: the exact denoiser of a Gaussian ---------------------------------------------
 *
 * Let every latent of the data be drawn from N(mu, s²), and let the forward process of Stable Diffusion
 * blur it: x_t = sqrt(a) x_0 + sqrt(1 - a) eps, where a = alphas_cumprod[t]. Then x_t is Gaussian too,
 * and the best prediction of eps, which a network would have to learn, is known in closed form:
 *
 *     E[eps | x_t] = sqrt(1 - a) (x_t - sqrt(a) mu) / (a s² + 1 - a)
 *
 * A sampler that is handed this model must end in samples of N(mu, s²), so its error can be measured
 * without any network.
 */
#define TRAIN_STEPS 1000

typedef struct denoiser {
  kg_object object; /* first: a kg_object * is a denoiser * */
  atomic_size_t references;
  double mean, deviation;
  double alphas_cumprod[TRAIN_STEPS];
} denoiser;

/* Stable Diffusion's schedule, "scaled_linear": sqrt(beta) is linear from sqrt(0.00085) to sqrt(0.012). */
static void scaled_linear(double alphas_cumprod[TRAIN_STEPS]) {
  double first = sqrt(0.00085), last = sqrt(0.012), product = 1.0;
  for (int t = 0; t < TRAIN_STEPS; t++) {
    double root = first + (last - first) * t / (TRAIN_STEPS - 1);
    product *= 1.0 - root * root;
    alphas_cumprod[t] = product;
  }
}

/* alphas_cumprod at a timestep between two of the table: log sigma, where sigma² = (1 - a) / a, is linear
 * in between, as in k-diffusion. */
static double alpha_cumprod(const denoiser *self, double timestep) {
  int below = (int)floor(timestep);
  double a = self->alphas_cumprod[below], fraction = timestep - below;
  if (fraction == 0.0) return a;
  double b = self->alphas_cumprod[below + 1];
  double log_variance = (1 - fraction) * log((1 - a) / a) + fraction * log((1 - b) / b);
  return 1.0 / (1.0 + exp(log_variance));
}

/* A tensor of an interface's input. */
static kg_status read_key(const kg_context *context, const kg_map *input, const char *key, int32_t ndim,
                          const char *axes, const DLTensor **tensor) {
  static const kg_value nothing = {KG_NONE, 0, {0}};
  const kg_value *value = kg_map_get(input, key);
  return read_tensor(context, key, value != NULL ? value : &nothing, ndim, axes, tensor);
}

/* "denoiser/1": x, timestep, context → prediction. Of the keys that may be absent only residuals are looked
 * at, to refuse them. */
static kg_status denoise(kg_object *object, const kg_context *context, const kg_map *input,
                         kg_map **output) {
  const denoiser *self = (const denoiser *)object;
  const DLTensor *x, *timestep, *conditioning;
  const kg_value *residuals = kg_map_get(input, "residuals");
  if (read_key(context, input, "x", 4, "[B, C, H, W]", &x) != KG_OK) return KG_ERROR;
  if (read_key(context, input, "timestep", 1, "[B]", &timestep) != KG_OK) return KG_ERROR;
  /* The data is the same whatever the prompt, so the context is looked at but not used. */
  if (read_key(context, input, "context", 3, "[B, T, D]", &conditioning) != KG_OK) return KG_ERROR;
  if (residuals != NULL && (residuals->kind != KG_LIST || residuals->as.list->count > 0))
    return fail(context, "residuals", "this model has no layers that a ControlNet could add to");
  int64_t batch = x->shape[0], each = count_of(x) / batch;
  if (timestep->shape[0] != batch || conditioning->shape[0] != batch)
    return fail(context, "timestep", "x has a batch of %lld, timestep of %lld, context of %lld",
                (long long)batch, (long long)timestep->shape[0], (long long)conditioning->shape[0]);

  kg_tensor *prediction = new_like(context, x);
  if (prediction == NULL) return no_memory(context);
  float *eps = prediction->dl->dl_tensor.data;
  for (int64_t b = 0; b < batch; b++) {
    double t = element(timestep, b);
    if (!(t >= 0.0 && t <= TRAIN_STEPS - 1)) {
      prediction->base.release(&prediction->base);
      return fail(context, "timestep", "%g is not in 0 to %d", t, TRAIN_STEPS - 1);
    }
    double a = alpha_cumprod(self, t);
    double variance = a * self->deviation * self->deviation + 1.0 - a;
    for (int64_t i = b * each; i < (b + 1) * each; i++)
      eps[i] = (float)(sqrt(1.0 - a) * (element(x, i) - sqrt(a) * self->mean) / variance);
  }
  kg_value made = {KG_TENSOR, 0, {0}};
  made.as.tensor = prediction;
  return kg_map_give(context, "prediction", made, output);
}

/* "describe/1": → description. */
static kg_status describe(kg_object *object, const kg_context *context, const kg_map *input,
                          kg_map **output) {
  const denoiser *self = (const denoiser *)object;
  (void)input;
  static const char begin[] = "{\"prediction\": \"epsilon\", \"in_channels\": 4, \"out_channels\": 4, "
                              "\"context_width\": 768, \"train_steps\": 1000, \"alphas_cumprod\": [";
  size_t room = sizeof begin + TRAIN_STEPS * 32, used = sizeof begin - 1;
  char *json = malloc(room);
  if (json == NULL) return no_memory(context);
  memcpy(json, begin, sizeof begin);
  for (int t = 0; t < TRAIN_STEPS; t++)
    used += (size_t)snprintf(json + used, room - used, "%s%.17g", t == 0 ? "" : ", ",
                             self->alphas_cumprod[t]);
  used += (size_t)snprintf(json + used, room - used, "]}");
  kg_str view = {json, used};
  kg_string *string = context->new_string(context, view); /* copies */
  free(json);
  if (string == NULL) return no_memory(context);
  kg_value made = {KG_STRING, 0, {0}};
  made.as.string = string;
  return kg_map_give(context, "description", made, output);
}

/* "memory/1": purge → bytes held. There is nothing that could be had again. */
static kg_status memory(kg_object *object, const kg_context *context, const kg_map *input,
                        kg_map **output) {
  const kg_value *purge = kg_map_get(input, "purge");
  (void)object;
  if (purge == NULL || purge->kind != KG_BOOL) return fail(context, "purge", "a boolean is wanted");
  kg_value made = {KG_INT, 0, {sizeof(denoiser)}};
  return kg_map_give(context, "bytes", made, output);
}

static const kg_interface *query(kg_object *object, kg_str id) {
  static const kg_interface denoise_1 = {sizeof(kg_interface), 0, denoise, KG_ANYWHERE};
  static const kg_interface describe_1 = {sizeof(kg_interface), 0, describe, KG_ANYWHERE};
  static const kg_interface memory_1 = {sizeof(kg_interface), 0, memory, KG_ANYWHERE};
  (void)object;
  if (equals(id, "denoiser/1")) return &denoise_1;
  if (equals(id, "describe/1")) return &describe_1;
  if (equals(id, "memory/1")) return &memory_1;
  return NULL;
}

static void retain(kg_counted *self) {
  atomic_fetch_add(&((denoiser *)self)->references, 1);
}

static void release(kg_counted *self) {
  if (atomic_fetch_sub(&((denoiser *)self)->references, 1) == 1) free(self);
}

/* ---- CAnalyticDenoiser: (mean FLOAT, deviation FLOAT) → model MODEL --------------------------- */

static kg_status analytic_denoiser(const kg_context *context, const kg_value *inputs,
                                   size_t n_inputs, kg_value *outputs, size_t n_outputs) {
  double mean, deviation;
  if (check_counts(context, "CAnalyticDenoiser", n_inputs, n_outputs, 2, 1) != KG_OK)
    return KG_ERROR;
  if (read_number(context, "mean", &inputs[0], -10.0, 10.0, &mean) != KG_OK) return KG_ERROR;
  if (read_number(context, "deviation", &inputs[1], 0.001, 10.0, &deviation) != KG_OK)
    return KG_ERROR;

  denoiser *self = malloc(sizeof *self);
  if (self == NULL) return no_memory(context);
  self->object.base.size = sizeof(kg_object);
  self->object.base.reserved = 0;
  self->object.base.retain = retain;
  self->object.base.release = release;
  self->object.type = text("MODEL");
  self->object.query = query;
  atomic_init(&self->references, 1); /* passes to the caller with the output */
  self->mean = mean;
  self->deviation = deviation;
  scaled_linear(self->alphas_cumprod);
  outputs[0].kind = KG_OBJECT;
  outputs[0].as.object = &self->object;
  return KG_OK;
}

/* ---- The library ----------------------------------------------------------------------------- */

static const char descriptor[] =
    "{\"name\": \"denoiser\", \"version\": \"1.0.0\", \"nodes\": ["
    "  {\"class\": \"CImageInvert\", \"doc\": \"Inverts an image.\", \"category\": \"image\","
    "   \"inputs\": ["
    "     {\"name\": \"image\", \"type\": \"IMAGE\"},"
    "     {\"name\": \"strength\", \"type\": \"FLOAT\", \"doc\": \"0 leaves the picture as it is.\","
    "      \"default\": 1.0, \"min\": 0.0, \"max\": 1.0, \"step\": 0.01}],"
    "   \"outputs\": [{\"name\": \"image\", \"type\": \"IMAGE\"}]},"
    "  {\"class\": \"CAnalyticDenoiser\", \"category\": \"loaders\","
    "   \"doc\": \"The exact denoiser of data drawn from a Gaussian.\","
    "   \"inputs\": ["
    "     {\"name\": \"mean\", \"type\": \"FLOAT\", \"default\": 0.5, \"min\": -10.0, \"max\": 10.0},"
    "     {\"name\": \"deviation\", \"type\": \"FLOAT\", \"default\": 0.5, \"min\": 0.001,"
    "      \"max\": 10.0}],"
    "   \"outputs\": [{\"name\": \"model\", \"type\": \"MODEL\"}]}]}";

/* The nodes by their places in the descriptor. */
static kg_status run(uint32_t node, const kg_context *context, const kg_value *inputs,
                     size_t n_inputs, kg_value *outputs, size_t n_outputs) {
  switch (node) {
    case 0: return image_invert(context, inputs, n_inputs, outputs, n_outputs);
    case 1: return analytic_denoiser(context, inputs, n_inputs, outputs, n_outputs);
    default: return fail(context, "", "there is no node %u: the library has 2", (unsigned)node);
  }
}

const kg_library *kosmograph_library_v1(void) {
  static const kg_library library = {
      sizeof(kg_library), KG_ABI_MAJOR, KG_ABI_MINOR, {descriptor, sizeof descriptor - 1}, run, NULL};
  return &library;
}
