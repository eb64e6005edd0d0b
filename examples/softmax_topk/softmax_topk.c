/* softmax_topk.c: post-processing in the guest. From a graph's logits, the best classes and their probabilities.
 *
 * In:        x               as the graph takes it
 * Out:       classes         INT64 [N, k]   best first; of equals, the smaller number first
 *            probabilities   FP32  [N, k]
 * Parameter: k               how many, 1 … 9 (default 5), at most the number of classes
 *
 *     python -m ziglang cc @examples/guest.flags -I kserve_wasm/include examples/softmax_topk/softmax_topk.c -o guest.wasm
 */
#include "../heap.h"
#include "kserve_wasm.h"

static kw_context context;

KW_EXPORT("load") kw_errno load(void) {
  kw_graph graph;
  KW_TRY(kw_load_by_name(KW_STR("default"), &graph));
  return kw_init_execution_context(graph, &context);
}

static kw_errno fail(uint32_t whose, const char *message, uint32_t length) {
  kw_fail(whose, message, length);
  return KW_INVALID_ARGUMENT;
}

/* e to the power of x ≤ 0, to FP32's precision: 2 to the whole part of x / ln 2, times a Taylor series of the rest. */
static double exponential(double x) {
  if (!(x > -100)) return 0;
  double turns = x * 1.4426950408889634;
  int whole = (int)(turns - 0.5);
  double rest = (turns - whole) * 0.6931471805599453, term = 1, sum = 1;
  for (int i = 1; i < 10; i++) sum += term *= rest / i;
  union {
    uint64_t bits;
    double value;
  } power = {.bits = (uint64_t)(1023 + whole) << 52};
  return sum * power.value;
}

/* Reads parameter k, 5 if the client gave none. */
static kw_errno read_k(uint32_t *k) {
  char digit;
  uint32_t length;
  *k = 5;
  kw_errno error = kw_parameter(KW_STR("k"), &digit, 1, &length);
  if (error == KW_NOT_FOUND) return KW_SUCCESS;
  if (error == KW_SUCCESS && length == 1 && digit >= '1' && digit <= '9') {
    *k = digit - '0';
    return KW_SUCCESS;
  }
  return fail(KW_FAIL_INPUT, KW_STR("parameter 'k' must be a number from 1 to 9"));
}

/* Runs the graph on x; its only output is the logits. */
static kw_errno run_graph(kw_tensor *logits) {
  kw_tensor x;
  KW_TRY(kw_input_by_name(KW_STR("x"), &x));
  KW_TRY(kw_set_input_tensor(context, 0, x));
  KW_TRY(kw_compute(context));
  return kw_get_output_tensor(context, 0, logits);
}

/* Puts the k largest of n logits in order: an insertion into a short sorted list. */
static void best(const float *logits, uint32_t n, uint32_t k, int64_t *classes) {
  for (uint32_t i = 0, found = 0; i < n; i++) {
    uint32_t at = found < k ? found++ : k;
    for (; at > 0 && logits[i] > logits[classes[at - 1]]; at--) {
      if (at < k) classes[at] = classes[at - 1];
    }
    if (at < k) classes[at] = i;
  }
}

static kw_errno answer(const char *name, uint32_t length, kw_dtype dtype, const int64_t dims[2], const void *data,
                       uint32_t size) {
  kw_tensor output;
  KW_TRY(kw_tensor_borrow(dtype, dims, 2, data, size, &output));
  return kw_output_set(name, length, output);
}

KW_EXPORT("infer") kw_errno infer(void) {
  uint32_t k, wanted;
  kw_tensor logits;
  kw_tensor_info info;
  int64_t shape[2];
  heap_give_back(0);
  KW_TRY(read_k(&k));
  KW_TRY(run_graph(&logits));
  KW_TRY(kw_tensor_info_get(logits, &info));
  if (info.dtype != KW_FP32 || info.n_dims != 2) {
    return fail(KW_FAIL_INTERNAL, KW_STR("this guest needs a graph whose first output is FP32 [N, classes]"));
  }
  KW_TRY(kw_tensor_shape(logits, shape, 2));
  int64_t rows = shape[0], n = shape[1];
  if (k > n) k = n;
  float *values = heap_take(info.nbytes);
  int64_t *classes = heap_take(rows * k * sizeof *classes);
  float *probabilities = heap_take(rows * k * sizeof *probabilities);
  if (!values || !classes || !probabilities) return fail(KW_FAIL_INPUT, KW_STR("too many rows: send fewer"));
  KW_TRY(kw_tensor_read(logits, 0, values, info.nbytes));

  const int64_t dims[2] = {rows, k};
  for (int64_t row = 0; row < rows; row++) best(values + row * n, n, k, classes + row * k);
  KW_TRY(answer(KW_STR("classes"), KW_INT64, dims, classes, rows * k * sizeof *classes));

  KW_TRY(kw_output_requested(KW_STR("probabilities"), &wanted));
  if (!wanted) return KW_SUCCESS;
  for (int64_t row = 0; row < rows && k > 0; row++) {
    const float *logit = values + row * n;
    const int64_t *top = classes + row * k;
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += exponential(logit[i] - logit[top[0]]);
    for (uint32_t i = 0; i < k; i++) probabilities[row * k + i] = exponential(logit[top[i]] - logit[top[0]]) / sum;
  }
  return answer(KW_STR("probabilities"), KW_FP32, dims, probabilities, rows * k * sizeof *probabilities);
}
