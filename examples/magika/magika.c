/* magika.c: tells file types from raw bytes.
 *
 * In:        contents   BYTES [N]   whole files
 * Out:       label      BYTES [N]   for example "python"
 *            score      FP32  [N]   the model's confidence; 1 where the bytes alone decide
 *            mime_type, group, description   BYTES [N]
 * Parameter: prediction_mode   "high_confidence" (default), "medium_confidence" or "best_guess"
 *
 *     python examples/magika/build.py -o build/magika/model.wasm
 *
 * Of each file only its ends enter the sandbox. Files are collected into batches of one tensor, so that memory does not
 * grow with their number.
 */
#include "../heap.h"
#include "features.h"
#include "kserve_wasm.h"
#include "labels.h"

#define BATCH 64

struct answer {
  uint32_t kind; /* an index into kinds */
  float score;
};

enum mode { BEST_GUESS, MEDIUM_CONFIDENCE_MODE, HIGH_CONFIDENCE };

static int32_t rows[BATCH][ROW_SIZE];      /* the model's input */
static float scores[BATCH][MODEL_LABELS];  /* … and output */
static struct answer *pending[BATCH];      /* whose answer each row is */
static uint32_t n_pending;
static kw_context context;
static enum mode mode;

static kw_errno refuse(const char *message, uint32_t length) {
  kw_fail(KW_FAIL_INPUT, message, length);
  return KW_INVALID_ARGUMENT;
}

/* --- The model --------------------------------------------------------------------------------------------------- */

/* Magika's rule for what to answer when its model says `kind`: some kinds stand for another, and one that the model
 * is not sure of becomes plain text or unknown. */
static uint32_t decide(uint32_t kind, float score) {
  uint32_t answer = kinds[kind].instead;
  double enough = mode == HIGH_CONFIDENCE ? kinds[kind].threshold : MEDIUM_CONFIDENCE;
  if (mode == BEST_GUESS || score >= enough) return answer;
  return kinds[answer].is_text ? KIND_TXT : KIND_UNKNOWN;
}

/* Asks the model about the rows collected so far. */
static kw_errno run_pending(void) {
  if (n_pending == 0) return KW_SUCCESS;
  kw_tensor input, output;
  int64_t dims[2] = {n_pending, ROW_SIZE};
  KW_TRY(kw_tensor_borrow(KW_INT32, dims, 2, rows, n_pending * sizeof rows[0], &input));
  KW_TRY(kw_set_input_tensor(context, 0, input));
  KW_TRY(kw_compute(context));
  KW_TRY(kw_get_output_tensor(context, 0, &output));
  KW_TRY(kw_tensor_read(output, 0, scores, n_pending * sizeof scores[0]));
  KW_TRY(kw_tensor_drop(input));
  KW_TRY(kw_tensor_drop(output));
  for (uint32_t row = 0; row < n_pending; row++) {
    uint32_t best = 0;
    for (uint32_t kind = 1; kind < MODEL_LABELS; kind++) {
      if (scores[row][kind] > scores[row][best]) best = kind;
    }
    *pending[row] = (struct answer){decide(best, scores[row][best]), scores[row][best]};
  }
  n_pending = 0;
  return KW_SUCCESS;
}

/* Answers one file, or adds it to the batch. Its bytes lie at `offset` of the tensor. */
static kw_errno identify(kw_tensor contents, uint64_t offset, uint32_t length, struct answer *answer) {
  static uint8_t first[BLOCK_SIZE], last[BLOCK_SIZE];
  uint32_t size = length < BLOCK_SIZE ? length : BLOCK_SIZE;
  *answer = (struct answer){KIND_EMPTY, 1};
  if (length == 0) return KW_SUCCESS;
  KW_TRY(kw_tensor_read(contents, offset, first, size));
  KW_TRY(kw_tensor_read(contents, offset + length - size, last, size));
  if (!extract_features(first, last, size, rows[n_pending])) {
    answer->kind = is_utf8(first, size) ? KIND_TXT : KIND_UNKNOWN;
    return KW_SUCCESS;
  }
  pending[n_pending++] = answer;
  return n_pending == BATCH ? run_pending() : KW_SUCCESS;
}

/* --- The request ------------------------------------------------------------------------------------------------- */

static bool same(const char *a, uint32_t length, const char *b, uint32_t b_length) {
  uint32_t i = 0;
  while (i < length && i < b_length && a[i] == b[i]) i++;
  return i == length && i == b_length;
}

static kw_errno read_mode(void) {
  char value[32];
  uint32_t length;
  kw_errno error = kw_parameter(KW_STR("prediction_mode"), value, sizeof value, &length);
  if (error == KW_NOT_FOUND) return KW_SUCCESS;
  if (error != KW_SUCCESS) length = 0; /* longer than any of them */
  if (same(value, length, KW_STR("best_guess"))) mode = BEST_GUESS;
  else if (same(value, length, KW_STR("medium_confidence"))) mode = MEDIUM_CONFIDENCE_MODE;
  else if (same(value, length, KW_STR("high_confidence"))) mode = HIGH_CONFIDENCE;
  else return refuse(KW_STR("parameter 'prediction_mode' must be high_confidence, medium_confidence or best_guess"));
  return KW_SUCCESS;
}

static kw_errno answer_scores(const struct answer *answers, int64_t n) {
  uint32_t requested;
  KW_TRY(kw_output_requested(KW_STR("score"), &requested));
  if (!requested) return KW_SUCCESS;
  uint64_t mark = heap_end;
  float *values = heap_take(n * sizeof *values);
  if (!values) return refuse(KW_STR("too many files for one request: send fewer"));
  for (int64_t i = 0; i < n; i++) values[i] = answers[i].score;
  kw_tensor output;
  KW_TRY(kw_tensor_create(KW_FP32, &n, 1, values, n * sizeof *values, &output));
  heap_give_back(mark);
  return kw_output_set(KW_STR("score"), output);
}

static kw_errno answer_texts(const struct answer *answers, int64_t n, enum field field) {
  const struct text *name = &field_names[field];
  uint32_t requested;
  KW_TRY(kw_output_requested(name->bytes, name->length, &requested));
  if (!requested) return KW_SUCCESS;
  uint64_t mark = heap_end, size = 0;
  for (int64_t i = 0; i < n; i++) size += 4 + kinds[answers[i].kind].texts[field].length;
  uint8_t *data = heap_take(size), *at = data;
  if (!data) return refuse(KW_STR("too many files for one request: send fewer"));
  for (int64_t i = 0; i < n; i++) {
    const struct text *text = &kinds[answers[i].kind].texts[field];
    __builtin_memcpy(at, &text->length, 4);
    __builtin_memcpy(at + 4, text->bytes, text->length);
    at += 4 + text->length;
  }
  kw_tensor output;
  KW_TRY(kw_tensor_create(KW_BYTES, &n, 1, data, size, &output));
  heap_give_back(mark);
  return kw_output_set(name->bytes, name->length, output);
}

KW_EXPORT("load") kw_errno load(void) {
  kw_graph graph;
  KW_TRY(kw_load_by_name(KW_STR("default"), &graph));
  return kw_init_execution_context(graph, &context);
}

KW_EXPORT("infer") kw_errno infer(void) {
  kw_tensor contents;
  kw_tensor_info info;
  /* Where the model's configuration reuses instances, these still hold the last request's values. */
  n_pending = 0, mode = HIGH_CONFIDENCE;
  heap_give_back(0);
  KW_TRY(kw_input_by_name(KW_STR("contents"), &contents));
  KW_TRY(kw_tensor_info_get(contents, &info));
  if (info.dtype != KW_BYTES || info.n_dims != 1) {
    return refuse(KW_STR("input 'contents' must be BYTES of one dimension, an element for each file"));
  }
  KW_TRY(read_mode());
  struct answer *answers = heap_take(info.elements * sizeof *answers);
  if (!answers) return refuse(KW_STR("too many files for one request: send fewer"));
  uint64_t offset = 0;
  for (uint64_t i = 0; i < info.elements; i++) {
    uint32_t length;
    KW_TRY(kw_tensor_read(contents, offset, &length, sizeof length));
    KW_TRY(identify(contents, offset + sizeof length, length, &answers[i]));
    offset += 4ull + length;
  }
  KW_TRY(run_pending());
  KW_TRY(answer_texts(answers, info.elements, LABEL));
  KW_TRY(answer_scores(answers, info.elements));
  for (enum field field = LABEL + 1; field < N_FIELDS; field++) KW_TRY(answer_texts(answers, info.elements, field));
  return KW_SUCCESS;
}
