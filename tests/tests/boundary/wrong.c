/* wrong.c: the example denoiser.c whose object makes one mistake, number WRONG, at its interfaces. What
 * check-plugin says of each stands in boundary.rs. */
#define kosmograph_library_v1 right_library
#include "denoiser.c"
#undef kosmograph_library_v1

/* The right answer with another value as the prediction; the value's reference is given away. */
static kg_status give(const kg_context *context, const char *key, kg_value value, kg_map **output) {
  if (*output != NULL) (*output)->base.release(&(*output)->base);
  return kg_map_give(context, key, value, output);
}

/* The references of what is static. */
static void stay(kg_counted *self) {
  (void)self;
}

static kg_status wrong_denoise(kg_object *object, const kg_context *context, const kg_map *input,
                               kg_map **output) {
  const kg_value *x = kg_map_get(input, "x");
  kg_value made = {KG_TENSOR, 0, {0}};
  if (WRONG == 5 && x == NULL) {
    static const int64_t shape[4] = {2, 4, 8, 8};
    DLDataType f32 = {kDLFloat, 32, 1};
    made.as.tensor = context->new_tensor(context, f32, 4, shape);
    return kg_map_give(context, "prediction", made, output);
  }
  if (WRONG == 6)
    for (size_t i = 0; i < input->count; i++)
      if (!equals(input->keys[i], "x") && !equals(input->keys[i], "timestep") &&
          !equals(input->keys[i], "context"))
        return fail(context, "", "there is a key too many");
  kg_status status = denoise(object, context, input, output);
  if (status != KG_OK) return WRONG == 7 ? (context->fail(context, text(""), text("")), status) : status;
  const DLTensor *dl = &x->as.tensor->dl->dl_tensor;
  switch (WRONG) {
    case 0: {
      int64_t shape[4] = {dl->shape[0], dl->shape[1], dl->shape[2], dl->shape[3] + 1};
      made.as.tensor = context->new_tensor(context, dl->dtype, 4, shape);
      return give(context, "prediction", made, output);
    }
    case 1:
      made.as.tensor = new_like(context, dl);
      return give(context, "eps", made, output);
    case 2: {
      static const kg_str key = {"prediction", 10};
      static const kg_value nothing = {KG_TENSOR, 0, {0}};
      static kg_map map = {{sizeof(kg_map), 0, stay, stay}, &key, &nothing, 1};
      (*output)->base.release(&(*output)->base);
      *output = &map;
      return KG_OK;
    }
    case 3:
      made.kind = KG_STRING;
      made.as.string = context->new_string(context, text("0.5"));
      return give(context, "prediction", made, output);
    case 4:
      (*output)->base.release(&(*output)->base);
      *output = NULL;
      return KG_OK;
    case 8:
      made.as.tensor = new_like(context, dl);
      for (int64_t i = 0; i < count_of(dl); i++) ((float *)made.as.tensor->dl->dl_tensor.data)[i] = NAN;
      return give(context, "prediction", made, output);
    case 9: {
      DLDataType f64 = {kDLFloat, 64, 1};
      made.as.tensor = context->new_tensor(context, f64, dl->ndim, dl->shape);
      return give(context, "prediction", made, output);
    }
    case 15: /* as if every tensor lay on the CPU */
      made.as.tensor = new_like(context, dl);
      for (int64_t i = 0; i < count_of(dl); i++)
        ((float *)made.as.tensor->dl->dl_tensor.data)[i] = ((const float *)dl->data)[i] > 0 ? 1 : 0;
      return give(context, "prediction", made, output);
    default: return KG_OK;
  }
}

static kg_status wrong_describe(kg_object *object, const kg_context *context, const kg_map *input,
                                kg_map **output) {
  kg_value made = {KG_STRING, 0, {0}};
  kg_status status = describe(object, context, input, output);
  if (status != KG_OK) return status;
  if (WRONG == 10)
    made.as.string = context->new_string(
        context, text("{\"prediction\": \"epsilon\", \"in_channels\": 4, \"out_channels\": 4, "
                      "\"context_width\": 768, \"train_steps\": 1000, \"alphas_cumprod\": [0.9, 0.5, 0.1]}"));
  else if (WRONG == 11)
    made.as.string = context->new_string(context, text("a model"));
  else
    return KG_OK;
  return give(context, "description", made, output);
}

static kg_status wrong_memory(kg_object *object, const kg_context *context, const kg_map *input,
                              kg_map **output) {
  kg_value made = {KG_INT, 0, {-1}};
  kg_status status = memory(object, context, input, output);
  return status == KG_OK && WRONG == 12 ? give(context, "bytes", made, output) : status;
}

static const kg_interface *wrong_query(kg_object *object, kg_str id) {
  static const kg_interface denoise_1 = {sizeof(kg_interface), 0, wrong_denoise, KG_ANYWHERE};
  static const kg_interface drafts = {16, 0, wrong_denoise, 0};
  static const kg_interface describe_1 = {sizeof(kg_interface), 0, wrong_describe, KG_ANYWHERE};
  static const kg_interface memory_1 = {sizeof(kg_interface), 0, wrong_memory, KG_ANYWHERE};
  if (WRONG == 14 && equals(id, "denoiser/1")) return NULL;
  if (WRONG == 16 && equals(id, "denoiser/1")) return &drafts;
  if (WRONG == 13 && equals(id, "control/1")) return &denoise_1;
  if (equals(id, "denoiser/1")) return &denoise_1;
  if (equals(id, "describe/1")) return &describe_1;
  if (equals(id, "memory/1")) return &memory_1;
  return query(object, id);
}

static kg_status wrong_run(uint32_t node, const kg_context *context, const kg_value *inputs,
                           size_t n_inputs, kg_value *outputs, size_t n_outputs) {
  kg_status status = run(node, context, inputs, n_inputs, outputs, n_outputs);
  if (node == 1 && status == KG_OK) outputs[0].as.object->query = wrong_query;
  return status;
}

const kg_library *kosmograph_library_v1(void) {
  static kg_library library;
  library = *right_library();
  library.run = wrong_run;
  return &library;
}
