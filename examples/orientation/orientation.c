/* orientation.c: tells how a page of text is turned.
 *
 * In:   image          UINT8 [1, height, width, 3]   RGB, of any size
 * Out:  rotation       INT32 [1]      degrees that it is turned clockwise: 0, 90, 180 or 270
 *       probabilities  FP32  [1, 4]   of each
 *
 *     python examples/orientation/build.py -o build/orientation/model.wasm
 *
 * Pre- and post-processing are graphs of operators, which the host runs where the tensors are: no pixel comes here.
 */
#include "../image.h"
#include "kserve_wasm.h"
#include "kserve_wasm_ml.h"

#define SHORT 256 /* the short side after scaling … */
#define SIDE 224  /* … and what is taken of the middle */
#define MIN_SIDE 32
#define MAX_ASPECT 8

static kw_graph before, model, after;

/* image → x, the model's input [1, 3, SIDE, SIDE]. */
static kw_errno build_before(void) {
  /* Of the pixels that the model was trained with. */
  static const float mean[] = {0.485f * 255, 0.456f * 255, 0.406f * 255};
  static const float variance[] = {58.395f * 58.395f, 57.12f * 57.12f, 57.375f * 57.375f};
  ml_builder b = ml_create_builder();
  ml_operand image = ml_input(b, KW_STR("image"), KW_UINT8, (const int64_t[]){1, -1, -2, 3}, 4);

  /* SHORT * side / shorter, rounded. */
  ml_operand sides = ml_slice(mlx_shape(image), (const uint32_t[]){1}, 1, (const int32_t[]){2}, 1, 0, 0);
  ml_operand shorter = ml_reduce_min(sides, 0, 0, true);
  ml_operand twice = ml_add(ml_mul(sides, ml_scalar_i32(b, 2 * SHORT)), shorter);
  ml_operand scaled = ml_div(twice, ml_mul(shorter, ml_scalar_i32(b, 2)));
  ml_operand start = ml_div(ml_sub(scaled, ml_scalar_i32(b, SIDE)), ml_scalar_i32(b, 2));
  ml_operand starts = ml_pad(start, (const uint32_t[]){1}, 1, (const uint32_t[]){1}, 1, ML_PAD_CONSTANT, 0);

  ml_operand resized = mlx_resample2d_to(ml_cast(image, KW_FP32), scaled,
                                         (const uint32_t[]){MAX_ASPECT * SHORT, MAX_ASPECT * SHORT}, 2,
                                         ML_LINEAR, (const uint32_t[]){1, 2}, 2);
  ml_operand middle = mlx_slice_from(resized, starts, (const int32_t[]){1, SIDE, SIDE, 3}, 4);
  ml_operand planes = ml_transpose(middle, (const uint32_t[]){0, 3, 1, 2}, 4);
  ml_operand x = ml_batch_normalization(planes, ml_vector_f32(b, mean, 3), ml_vector_f32(b, variance, 3), ML_NONE, ML_NONE,
                                        1, 0);
  KW_TRY(ml_build_one(b, KW_STR("x"), x, &before));
  return mlx_keep(before, KW_STR("before"));
}

/* logits [N, 4] → rotation [N], probabilities [N, 4]. */
static kw_errno build_after(void) {
  ml_builder b = ml_create_builder();
  ml_operand logits = ml_input(b, KW_STR("logits"), KW_FP32, (const int64_t[]){-1, 4}, 2);
  ml_operand turns = ml_arg_max(logits, 1, false, KW_INT32);
  ml_output outputs[] = {
    {KW_STR("rotation"), ml_mul(turns, ml_scalar_i32(b, 90))},
    {KW_STR("probabilities"), ml_softmax(logits, 1)},
  };
  KW_TRY(ml_build(b, outputs, 2, &after));
  return mlx_keep(after, KW_STR("after"));
}

KW_EXPORT("load") kw_errno load(void) {
  KW_TRY(kw_load_by_name(KW_STR("default"), &model));
  /* The first instance builds the graphs, and the others find them. */
  if (kw_load_by_name(KW_STR("before"), &before) != KW_SUCCESS) KW_TRY(build_before());
  if (kw_load_by_name(KW_STR("after"), &after) != KW_SUCCESS) KW_TRY(build_after());
  return KW_SUCCESS;
}

KW_EXPORT("infer") kw_errno infer(void) {
  kw_tensor image, x, logits, answers[2];
  KW_TRY(kw_input_by_name(KW_STR("image"), &image));
  if (!image_fits(image, MIN_SIDE, MAX_ASPECT)) {
    kw_fail(KW_FAIL_INPUT, KW_STR("input 'image' must be UINT8 [1, height, width, 3] of an RGB picture: sides of 32 to "
                                  "8192 pixels, one at most 8 times as long as the other"));
    return KW_INVALID_ARGUMENT;
  }
  KW_TRY(kw_dispatch(before, &image, 1, &x, 1));
  KW_TRY(kw_dispatch(model, &x, 1, &logits, 1));
  KW_TRY(kw_dispatch(after, &logits, 1, answers, 2));
  KW_TRY(kw_output_set(KW_STR("rotation"), answers[0]));
  return kw_output_set(KW_STR("probabilities"), answers[1]);
}
