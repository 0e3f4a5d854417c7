/* A library whose nodes say that they are done and hand out garbage. */
#include <stdint.h>
#include <string.h>

#include "node.h"

static void keep(kg_counted *self) { (void)self; }

static kg_status run(uint32_t node, const kg_context *context, const kg_value *inputs,
                     size_t n_inputs, kg_value *outputs, size_t n_outputs) {
  static kg_string not_utf8 = {{sizeof(kg_string), 0, keep, keep}, {"\xff\xfe", 2}};
  static kg_list small = {{8, 0, keep, keep}, NULL, 0};
  static kg_list nowhere = {{sizeof(kg_list), 0, keep, keep}, NULL, 5};
  static kg_list itself = {{sizeof(kg_list), 0, keep, keep}, NULL, 1};
  static kg_value self = {KG_LIST, 0, {0}};
  static int64_t shape[] = {1, -5, 2, 3};
  static DLManagedTensorVersioned view = {
      {1, 0}, NULL, NULL, 0, {NULL, {kDLCPU, 0}, 4, {kDLFloat, 32, 1}, shape, NULL, 0}};
  static kg_tensor tensor = {{sizeof(kg_tensor), 0, keep, keep}, &view, NULL, NULL};
  (void)inputs, (void)n_inputs;
  if (n_outputs == 0) return KG_OK;
  switch (node) {
    case 0: return KG_ERROR;
    case 1: return KG_CANCELLED;
    case 2: return 42;
    case 3: break; /* no output */
    case 4: outputs[0].kind = 4711; break;
    case 5: outputs[0].kind = KG_TENSOR; break;
    case 6: outputs[0].kind = KG_STRING, outputs[0].as.string = &not_utf8; break;
    case 7: outputs[0].kind = KG_LIST, outputs[0].as.list = &small; break;
    case 8: outputs[0].kind = KG_LIST, outputs[0].as.list = &nowhere; break;
    case 9:
      self.as.list = &itself, itself.items = &self;
      outputs[0] = self;
      break;
    case 10: outputs[0].kind = KG_TENSOR, outputs[0].as.tensor = &tensor; break;
    case 11: outputs[0].kind = KG_INT; break;
    case 12: {
      kg_str text = {"not JSON", 8};
      context->output(context, text);
      outputs[0].kind = KG_NONE;
      break;
    }
    default: {
      kg_str none = {NULL, 0}, long_text = {NULL, SIZE_MAX};
      context->fail(context, none, long_text);
      return KG_ERROR;
    }
  }
  return KG_OK;
}

#define NODE(class)                                                                             \
  "{\"class\": \"" class "\", \"inputs\": [], \"outputs\": [{\"name\": \"out\", \"type\": \"IMAGE\"}]}"

static const char descriptor[] =
    "{\"name\": \"garbage\", \"version\": \"1\", \"nodes\": [" NODE("A") "," NODE("B") "," NODE("C")
    "," NODE("D") "," NODE("E") "," NODE("F") "," NODE("G") "," NODE("H") "," NODE("I") "," NODE("J")
    "," NODE("K") "," NODE("L") "," NODE("M") "," NODE("N") "]}";

const kg_library *kosmograph_library_v1(void) {
  static const kg_library library = {
      sizeof(kg_library), KG_ABI_MAJOR, KG_ABI_MINOR, {descriptor, sizeof descriptor - 1}, run, NULL};
  return &library;
}
