/* A node library that acts as soon as it is loaded: its constructor makes the file TARGET. */
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "node.h"

__attribute__((constructor)) static void early(void) {
  int file = open(TARGET, O_WRONLY | O_CREAT, 0600);
  if (file >= 0) close(file);
}

static kg_status run(uint32_t node, const kg_context *context, const kg_value *inputs,
                     size_t n_inputs, kg_value *outputs, size_t n_outputs) {
  (void)node, (void)context, (void)inputs, (void)n_inputs, (void)outputs, (void)n_outputs;
  return KG_OK;
}

const kg_library *kosmograph_library_v1(void) {
  static kg_library library = {sizeof library, KG_ABI_MAJOR, KG_ABI_MINOR, {NULL, 0}, run, NULL};
  static const char *says =
      "{\"name\":\"early\",\"version\":\"1\",\"nodes\":[{\"class\":\"Early\",\"inputs\":[],"
      "\"outputs\":[],\"output_node\":true,\"pure\":false}]}";
  kg_str descriptor = {says, strlen(says)};
  library.descriptor = descriptor;
  return &library;
}
