/* A library whose every node breaks one rule of node.h, for the conformance checks to find. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "node.h"

static kg_status refuse(const kg_context *context, const char *input) {
  static const char sentence[] = "this is wrong";
  kg_str named = {input, strlen(input)}, said = {sentence, sizeof sentence - 1};
  context->fail(context, named, said);
  return KG_ERROR;
}

static const float *pixels_of(const kg_value *image) {
  return image->as.tensor->dl->dl_tensor.data;
}

/* Whether the first input is an IMAGE as it should be. */
static int is_image(const kg_value *value) {
  if (value->kind != KG_TENSOR) return 0;
  const DLTensor *dl = &value->as.tensor->dl->dl_tensor;
  if (dl->ndim != 4 || dl->dtype.code != kDLFloat || dl->dtype.bits != 32) return 0;
  for (int axis = 0; axis < 4; axis++)
    if (dl->shape[axis] <= 0) return 0;
  return 1;
}

/* A copy of the image that does not look at strides; `plus` is added to the first pixel. */
static kg_status copy(const kg_context *context, const kg_value *image, float plus,
                      kg_value *output) {
  const DLTensor *dl = &image->as.tensor->dl->dl_tensor;
  kg_tensor *made = context->new_tensor(context, dl->dtype, dl->ndim, dl->shape);
  if (made == NULL) return refuse(context, "");
  size_t count = (size_t)(dl->shape[0] * dl->shape[1] * dl->shape[2] * dl->shape[3]);
  memcpy(made->dl->dl_tensor.data, pixels_of(image), count * sizeof(float));
  *(float *)made->dl->dl_tensor.data += plus;
  output->kind = KG_TENSOR;
  output->as.tensor = made;
  return KG_OK;
}

static kg_status run(uint32_t node, const kg_context *context, const kg_value *inputs,
                     size_t n_inputs, kg_value *outputs, size_t n_outputs) {
  static float calls = 0;
  if (node > 10) return refuse(context, "");
  if (node != 6 && (n_inputs != 2 || n_outputs != 1)) return refuse(context, "");
  const kg_value *image = &inputs[0];
  if (node == 10) return *pixels_of(image) > 2 ? KG_ERROR : copy(context, image, 0, outputs);
  if (node == 7 && image->kind == KG_NONE) return KG_ERROR;
  if (node == 6 && n_inputs < 2) return KG_OK;
  if (!is_image(image)) return refuse(context, node == 9 ? "picture" : "image");
  if (inputs[1].kind != KG_FLOAT) return refuse(context, "strength");
  double strength = inputs[1].as.number;
  int in_range = node == 0 ? strength < 0 || strength <= 1 : strength >= 0 && strength <= 1;
  if (!in_range) return refuse(context, "strength");
  switch (node) {
    case 1: image->as.counted->retain(image->as.counted); break;
    case 2: outputs[0] = *image; return KG_OK; /* without retaining it */
    case 3: return context->progress(context, 0, 1), copy(context, image, 0, outputs);
    case 4: return copy(context, image, calls += 0.001f, outputs);
    case 5: return copy(context, image, 7.0f, outputs);
    case 8: {
      DLDataType f32 = {kDLFloat, 32, 1};
      int64_t shape[] = {4};
      context->new_tensor(context, f32, 1, shape); /* and forgets it */
      break;
    }
    default: break;
  }
  return copy(context, image, 0, outputs);
}

#define NODE(class)                                                                             \
  "{\"class\": \"" class "\", \"inputs\": [{\"name\": \"image\", \"type\": \"IMAGE\"},"           \
  "{\"name\": \"strength\", \"type\": \"FLOAT\", \"default\": 0.5, \"min\": 0, \"max\": 1}],"     \
  "\"outputs\": [{\"name\": \"image\", \"type\": \"IMAGE\"}]}"

static const char descriptor[] =
    "{\"name\": \"careless\", \"version\": \"1\", \"nodes\": [" NODE("NoRange") "," NODE("Leaks")
    "," NODE("GivesAwayWhatIsLent") "," NODE("NeverStops") "," NODE("Impure") "," NODE("TooBright")
    "," NODE("NoCounts") "," NODE("NoReason") "," NODE("Forgets") "," NODE("NamesAnother")
    "," NODE("Crashes") "]}";

const kg_library *kosmograph_library_v1(void) {
  static const kg_library library = {
      sizeof(kg_library), KG_ABI_MAJOR, KG_ABI_MINOR, {descriptor, sizeof descriptor - 1}, run, NULL};
  return &library;
}
