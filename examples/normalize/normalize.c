/* normalize.c: pre-processing in the guest. Clients send pixels as cameras and decoders give them; the graph gets what
 * it was trained on.
 *
 * In:  image   UINT8 [N, H, W, 3]   RGB, 0 … 255
 * Out: y       as the graph gives it for FP32 [N, 3, H, W], each channel minus its mean, over its deviation
 *
 *     python -m ziglang cc @examples/guest.flags -I kserve_wasm/include examples/normalize/normalize.c -o guest.wasm
 */
#include "../heap.h"
#include "kserve_wasm.h"

#define CHANNELS 3

/* ImageNet's, in units of 0 … 255. */
static const float mean[CHANNELS] = {123.675f, 116.28f, 103.53f};
static const float deviation[CHANNELS] = {58.395f, 57.12f, 57.375f};

static kw_errno refuse(const char *message, uint32_t length) {
  kw_fail(KW_FAIL_INPUT, message, length);
  return KW_INVALID_ARGUMENT;
}

static kw_context context;

KW_EXPORT("load") kw_errno load(void) {
  kw_graph graph;
  KW_TRY(kw_load_by_name(KW_STR("default"), &graph));
  return kw_init_execution_context(graph, &context);
}

KW_EXPORT("infer") kw_errno infer(void) {
  kw_tensor image, normal, y;
  kw_tensor_info info;
  int64_t shape[4];
  heap_give_back(0);
  KW_TRY(kw_input_by_name(KW_STR("image"), &image));
  KW_TRY(kw_tensor_info_get(image, &info));
  if (info.dtype != KW_UINT8 || info.n_dims != 4) return refuse(KW_STR("input 'image' must be UINT8 [N, H, W, 3]"));
  KW_TRY(kw_tensor_shape(image, shape, 4));
  if (shape[3] != CHANNELS) return refuse(KW_STR("input 'image' must have 3 channels in its last dimension"));

  uint8_t *pixels = heap_take(info.nbytes);
  float *planes = heap_take(info.elements * sizeof *planes);
  if (!pixels || !planes) return refuse(KW_STR("input 'image' is too large: send fewer or smaller images"));
  KW_TRY(kw_tensor_read(image, 0, pixels, info.nbytes));
  uint32_t area = shape[1] * shape[2];
  float *out = planes;
  for (int64_t n = 0; n < shape[0]; n++, pixels += area * CHANNELS) {
    for (uint32_t c = 0; c < CHANNELS; c++) {
      for (uint32_t i = 0; i < area; i++) *out++ = (pixels[i * CHANNELS + c] - mean[c]) / deviation[c];
    }
  }

  int64_t dims[4] = {shape[0], CHANNELS, shape[1], shape[2]};
  KW_TRY(kw_tensor_borrow(KW_FP32, dims, 4, planes, info.elements * sizeof *planes, &normal));
  KW_TRY(kw_set_input_tensor(context, 0, normal));
  KW_TRY(kw_compute(context));
  KW_TRY(kw_get_output_tensor(context, 0, &y));
  return kw_output_set(KW_STR("y"), y);
}
