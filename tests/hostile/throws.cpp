// A node library in C++ whose node Faulty lets an exception out.
#include <stdexcept>

#include "node.h"

namespace {

const char descriptor[] =
    "{\"name\":\"throws\",\"version\":\"1\",\"nodes\":[{\"class\":\"Faulty\",\"inputs\":[{\"name\":\"image\","
    "\"type\":\"IMAGE\"}],\"outputs\":[{\"name\":\"image\",\"type\":\"IMAGE\"}],\"pure\":false}]}";

kg_status run(uint32_t, const kg_context *context, const kg_value *inputs, size_t n_inputs, kg_value *, size_t) {
  if (n_inputs != 1 || inputs[0].kind != KG_TENSOR) {
    context->fail(context, {"image", 5}, {"an image is wanted", 18});
    return KG_ERROR;
  }
  throw std::runtime_error("from C++");
}

const kg_library library = {sizeof library, KG_ABI_MAJOR, KG_ABI_MINOR, {descriptor, sizeof descriptor - 1}, run,
                            nullptr};

}  // namespace

const kg_library *kosmograph_library_v1() { return &library; }
