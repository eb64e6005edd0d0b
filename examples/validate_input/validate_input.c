/* validate_input.c: refuses what the graph cannot make sense of, in words the client can act on (HTTP 422).
 *
 * In:  x   FP32, every element a finite number      Out: y, as the graph gives it
 *
 *     python -m ziglang cc @examples/guest.flags -I kserve_wasm/include examples/validate_input/validate_input.c -o guest.wasm
 */
#include "kserve_wasm.h"

#define CHUNK 4096

static char *append(char *to, const char *text, uint32_t length) {
  for (uint32_t i = 0; i < length; i++) *to++ = text[i];
  return to;
}

static char *append_number(char *to, uint64_t number) {
  char digits[20];
  uint32_t n = 0;
  do digits[n++] = '0' + number % 10;
  while (number /= 10);
  while (n > 0) *to++ = digits[--n];
  return to;
}

static kw_errno refuse(uint64_t element) {
  char message[128], *end = message;
  end = append(end, KW_STR("input 'x' must hold finite numbers, and element "));
  end = append_number(end, element);
  end = append(end, KW_STR(" is infinite or not a number"));
  kw_fail(KW_FAIL_INPUT, message, end - message);
  return KW_INVALID_ARGUMENT;
}

/* Reads x piece by piece, so that memory does not grow with it. */
static kw_errno check(kw_tensor x) {
  static uint32_t bits[CHUNK];
  kw_tensor_info info;
  KW_TRY(kw_tensor_info_get(x, &info));
  if (info.dtype != KW_FP32) {
    kw_fail(KW_FAIL_INPUT, KW_STR("input 'x' must be FP32"));
    return KW_INVALID_ARGUMENT;
  }
  for (uint64_t start = 0; start < info.elements; start += CHUNK) {
    uint32_t n = info.elements - start < CHUNK ? info.elements - start : CHUNK;
    KW_TRY(kw_tensor_read(x, start * 4, bits, n * 4));
    for (uint32_t i = 0; i < n; i++) {
      /* All bits of the exponent set: infinite, or not a number (IEEE 754). */
      if ((bits[i] & 0x7F800000) == 0x7F800000) return refuse(start + i);
    }
  }
  return KW_SUCCESS;
}

static kw_context context;

KW_EXPORT("load") kw_errno load(void) {
  kw_graph graph;
  KW_TRY(kw_load_by_name(KW_STR("default"), &graph));
  return kw_init_execution_context(graph, &context);
}

KW_EXPORT("infer") kw_errno infer(void) {
  kw_tensor x, y;
  KW_TRY(kw_input_by_name(KW_STR("x"), &x));
  KW_TRY(check(x));
  KW_TRY(kw_set_input_tensor(context, 0, x));
  KW_TRY(kw_compute(context));
  KW_TRY(kw_get_output_tensor(context, 0, &y));
  return kw_output_set(KW_STR("y"), y);
}
