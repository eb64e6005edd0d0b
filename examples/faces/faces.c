/* faces.c: finds faces in a picture.
 *
 * In:   image   UINT8 [1, height, width, 3]   RGB, of any size
 * Out:  boxes   FP32 [faces, 4]      left, top, right, bottom; best first
 *       scores  FP32 [faces]         from 0.5 to 1
 *       points  FP32 [faces, 6, 2]   x and y of the right eye, left eye, nose, mouth, right ear and left ear, as the
 *                                    person has them
 *
 *     python examples/faces/build.py -o build/faces/model.wasm
 *
 * Everything is in pixels of the image. The model gives, for each of 896 anchors, how likely there is a face, and where;
 * the best one of those that overlap is kept. All of that are graphs of operators, which the host runs where the tensors
 * are: no pixel comes here. (MediaPipe, whose model this is, answers with the mean of those that overlap.)
 */
#include "../image.h"
#include "kserve_wasm.h"
#include "kserve_wasm_ml.h"

#define SIDE 128 /* of the model's square input */
#define ANCHORS 896
#define MAX_FACES 100
#define MIN_SCORE 0.5
#define MAX_OVERLAP 0.3
#define MIN_SIDE 16
#define MAX_ASPECT 16

static kw_graph before, model, after;

static ml_operand slice1(ml_operand input, uint32_t start, int32_t size) {
  return ml_slice(input, &start, 1, &size, 1, 0, 0);
}

/* image → input [1, 3, SIDE, SIDE], the picture amid black; and how to get back, as x and y:
 * image = (input - offset) * scale. */
static kw_errno build_before(void) {
  ml_builder b = ml_create_builder();
  ml_operand image = ml_input(b, KW_STR("image"), KW_UINT8, (const int64_t[]){1, -1, -2, 3}, 4);

  /* SIDE * side / longer, rounded. */
  ml_operand sides = slice1(mlx_shape(image), 1, 2);
  ml_operand longer = ml_reduce_max(sides, 0, 0, true);
  ml_operand twice = ml_add(ml_mul(sides, ml_scalar_i32(b, 2 * SIDE)), longer);
  ml_operand scaled = ml_div(twice, ml_mul(longer, ml_scalar_i32(b, 2)));

  /* With a margin of SIDE / 2 around, the middle starts at half of each side. */
  ml_operand half = ml_div(scaled, ml_scalar_i32(b, 2));
  ml_operand starts = ml_pad(half, (const uint32_t[]){1}, 1, (const uint32_t[]){1}, 1, ML_PAD_CONSTANT, 0);
  ml_operand resized = mlx_resample2d_to(ml_cast(image, KW_FP32), scaled, (const uint32_t[]){SIDE, SIDE}, 2, ML_LINEAR,
                                         (const uint32_t[]){1, 2}, 2);
  const uint32_t margin[] = {0, SIDE / 2, SIDE / 2, 0};
  ml_operand framed = ml_pad(resized, margin, 4, margin, 4, ML_PAD_CONSTANT, 0);
  ml_operand middle = mlx_slice_from(framed, starts, (const int32_t[]){1, SIDE, SIDE, 3}, 4);
  ml_operand planes = ml_transpose(middle, (const uint32_t[]){0, 3, 1, 2}, 4);
  ml_operand input = ml_sub(ml_div(planes, ml_scalar_f32(b, 127.5f)), ml_scalar_f32(b, 1));

  const uint32_t first[] = {0};
  ml_operand xy = ml_reverse(scaled, first, 1);
  ml_operand offset = ml_sub(ml_scalar_i32(b, SIDE / 2), ml_div(xy, ml_scalar_i32(b, 2)));
  ml_operand scale = ml_div(ml_cast(ml_reverse(sides, first, 1), KW_FP32), ml_cast(xy, KW_FP32));
  ml_output outputs[] = {
    {KW_STR("input"), input},
    {KW_STR("offset"), ml_cast(offset, KW_FP32)},
    {KW_STR("scale"), scale},
  };
  KW_TRY(ml_build(b, outputs, 3, &before));
  return mlx_keep(before, KW_STR("before"));
}

/* The centres of the anchors in the model's input: 2 in each cell of 8 pixels, then 6 in each of 16. */
static ml_operand anchors(ml_builder b) {
  static float centres[ANCHORS][2];
  uint32_t n = 0;
  for (uint32_t cell = 8; cell <= 16; cell += 8) {
    for (uint32_t y = cell / 2; y < SIDE; y += cell) {
      for (uint32_t x = cell / 2; x < SIDE; x += cell) {
        for (uint32_t i = 0; i < (cell == 8 ? 2 : 6); i++, n++) centres[n][0] = x, centres[n][1] = y;
      }
    }
  }
  return ml_constant(b, KW_FP32, (const int64_t[]){ANCHORS, 1, 2}, 3, centres, sizeof centres);
}

/* `count` entries of [ANCHORS, 8, 2] along the second dimension. */
static ml_operand pairs(ml_operand input, uint32_t start, int32_t count) {
  return ml_slice(input, (const uint32_t[]){0, start, 0}, 3, (const int32_t[]){ANCHORS, count, 2}, 3, 0, 0);
}

/* regressors, classificators, offset, scale → boxes, scores, points. */
static kw_errno build_after(void) {
  ml_builder b = ml_create_builder();
  ml_operand regressors = ml_input(b, KW_STR("regressors"), KW_FP32, (const int64_t[]){1, ANCHORS, 16}, 3);
  ml_operand logits = ml_input(b, KW_STR("classificators"), KW_FP32, (const int64_t[]){1, ANCHORS, 1}, 3);
  ml_operand offset = ml_input(b, KW_STR("offset"), KW_FP32, (const int64_t[]){2}, 1);
  ml_operand scale = ml_input(b, KW_STR("scale"), KW_FP32, (const int64_t[]){2}, 1);

  /* For each anchor the box's centre from there, the box's size, and 6 points from there. */
  static const float from_anchor[8] = {1, 0, 1, 1, 1, 1, 1, 1};
  ml_operand moved = ml_constant(b, KW_FP32, (const int64_t[]){8, 1}, 2, from_anchor, sizeof from_anchor);
  ml_operand raw = ml_reshape(regressors, (const int32_t[]){ANCHORS, 8, 2}, 3);
  ml_operand decoded = ml_mul(ml_add(raw, ml_mul(ml_sub(anchors(b), offset), moved)), scale);
  ml_operand centre = pairs(decoded, 0, 1), half = ml_div(pairs(decoded, 1, 1), ml_scalar_f32(b, 2));
  ml_operand corners[] = {ml_sub(centre, half), ml_add(centre, half)};
  ml_operand boxes = ml_reshape(ml_concat(corners, 2, 1), (const int32_t[]){1, ANCHORS, 4}, 3);
  ml_operand scores = ml_reshape(ml_sigmoid(ml_clamp(logits, -100, 100)), (const int32_t[]){1, 1, ANCHORS}, 3);

  ml_operand kept = mlx_non_max_suppression(boxes, scores, MAX_FACES, MAX_OVERLAP, MIN_SCORE, false);
  ml_operand best = ml_gather(kept, ml_scalar_i32(b, 2), 1);
  ml_output outputs[] = {
    {KW_STR("boxes"), ml_gather(ml_reshape(boxes, (const int32_t[]){ANCHORS, 4}, 2), best, 0)},
    {KW_STR("scores"), ml_gather(ml_reshape(scores, (const int32_t[]){ANCHORS}, 1), best, 0)},
    {KW_STR("points"), ml_gather(pairs(decoded, 2, 6), best, 0)},
  };
  KW_TRY(ml_build(b, outputs, 3, &after));
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
  kw_tensor image, prepared[3], raw[4], answers[3];
  KW_TRY(kw_input_by_name(KW_STR("image"), &image));
  if (!image_fits(image, MIN_SIDE, MAX_ASPECT)) {
    kw_fail(KW_FAIL_INPUT, KW_STR("input 'image' must be UINT8 [1, height, width, 3] of an RGB picture: sides of 16 to "
                                  "8192 pixels, one at most 16 times as long as the other"));
    return KW_INVALID_ARGUMENT;
  }
  KW_TRY(kw_dispatch(before, &image, 1, prepared, 3));
  KW_TRY(kw_dispatch(model, &prepared[0], 1, raw, 2));
  raw[2] = prepared[1], raw[3] = prepared[2];
  KW_TRY(kw_dispatch(after, raw, 4, answers, 3));
  KW_TRY(kw_output_set(KW_STR("boxes"), answers[0]));
  KW_TRY(kw_output_set(KW_STR("scores"), answers[1]));
  return kw_output_set(KW_STR("points"), answers[2]);
}
