/* kserve_wasm_ml.h: graphs built of operators, for guests of the kserve_wasm host.
 *
 * Pre- and post-processing where the tensors are: a guest builds a graph of operators, and the host runs it, on the CPU
 * or the GPU, without a byte of a tensor in the guest's memory.
 *
 *     ml_builder b = ml_create_builder();
 *     ml_operand x = ml_input(b, KW_STR("x"), KW_FP32, (const int64_t[]){-1, 10}, 2);
 *     ml_operand p = ml_softmax(x, 1);
 *     kw_graph graph;
 *     KW_TRY(ml_build_one(b, KW_STR("p"), p, &graph));
 *     kw_tensor answer;
 *     KW_TRY(kw_dispatch(graph, &input, 1, &answer, 1));
 *
 * Operators have the names, attributes and semantics of the W3C Web Neural Network API (WebNN, Candidate
 * Recommendation). The interface is this project's own and experimental; what differs from the specification is listed
 * in docs/operators.md.
 *
 * A call that gives an operand gives ML_FAILED when it fails. Whatever is built on that fails too, and ml_build tells
 * the first reason, which names the operator and its operands: so calls can be nested without a check at each.
 *
 * A dimension that is negative is open: its size is known only when the graph runs. Equal negative numbers are equal
 * sizes. A graph whose inputs all have the same open first dimension, and that keeps it apart, is run for several
 * requests at once.
 *
 * Building the same graph again, in this or another instance, costs two or three microseconds an operator: a graph can be
 * built in every request. Builders and operands end with ml_build or with the request; a graph lives as long as one from
 * load_by_name does, and can be used wherever such a one can.
 */
#ifndef KSERVE_WASM_ML_H
#define KSERVE_WASM_ML_H

#include <stdbool.h> /* for parameters that say yes or no */

#include "kserve_wasm.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef uint32_t ml_builder; /* a graph in the making */
typedef uint32_t ml_operand; /* an operand of it */

#define ML_FAILED 0xFFFFFFFFu /* in place of an operand or builder: the call failed */
#define ML_NONE 0u            /* in place of an optional operand: there is none */

typedef struct ml_output {
  const char *name;
  uint32_t name_length;
  ml_operand operand;
} ml_output;

#define ML_IMPORT(name) __attribute__((import_module("kserve_wasm_ml"), import_name(name))) extern

/* --- Building ----------------------------------------------------------------------------------------------------- */

ML_IMPORT("createBuilder") ml_builder ml_create_builder(void);
/* An operand that kw_dispatch gives; inputs are in the order in which they are made. Every type but KW_BYTES; those that
 * WebNN does not have are for ml_cast alone. */
ML_IMPORT("input") ml_operand ml_input(ml_builder builder, const char *name, uint32_t name_length, kw_dtype dtype,
                                       const int64_t *dims, uint32_t n_dims);
/* An operand with these elements, little-endian and row-major. */
ML_IMPORT("constant") ml_operand ml_constant(ml_builder builder, kw_dtype dtype, const int64_t *dims, uint32_t n_dims,
                                             const void *data, uint32_t data_length);
/* The graph that gives these operands, in this order. Ends the builder, also when it fails. */
ML_IMPORT("build") kw_errno ml_build(ml_builder builder, const ml_output *outputs, uint32_t n_outputs,
                                     kw_graph *graph_out);

/* What is known of an operand: ML_FAILED where there is none; open dimensions are negative. */
ML_IMPORT("operandRank") uint32_t ml_operand_rank(ml_operand operand);
ML_IMPORT("operandDataType") kw_dtype ml_operand_dtype(ml_operand operand);
ML_IMPORT("operandShape") kw_errno ml_operand_shape(ml_operand operand, int64_t *dims, uint32_t capacity);

/* --- Element-wise ------------------------------------------------------------------------------------------------- */

/* Two operands of one type, broadcast. Integers wrap around; an integer divided by 0 is 0. */
ML_IMPORT("add") ml_operand ml_add(ml_operand a, ml_operand b);
ML_IMPORT("sub") ml_operand ml_sub(ml_operand a, ml_operand b);
ML_IMPORT("mul") ml_operand ml_mul(ml_operand a, ml_operand b);
ML_IMPORT("div") ml_operand ml_div(ml_operand a, ml_operand b);
ML_IMPORT("max") ml_operand ml_max(ml_operand a, ml_operand b);
ML_IMPORT("min") ml_operand ml_min(ml_operand a, ml_operand b);
ML_IMPORT("pow") ml_operand ml_pow(ml_operand a, ml_operand b);

/* Comparisons and logic give KW_UINT8: 0 or 1. */
ML_IMPORT("equal") ml_operand ml_equal(ml_operand a, ml_operand b);
ML_IMPORT("notEqual") ml_operand ml_not_equal(ml_operand a, ml_operand b);
ML_IMPORT("greater") ml_operand ml_greater(ml_operand a, ml_operand b);
ML_IMPORT("greaterOrEqual") ml_operand ml_greater_or_equal(ml_operand a, ml_operand b);
ML_IMPORT("lesser") ml_operand ml_lesser(ml_operand a, ml_operand b);
ML_IMPORT("lesserOrEqual") ml_operand ml_lesser_or_equal(ml_operand a, ml_operand b);
ML_IMPORT("logicalAnd") ml_operand ml_logical_and(ml_operand a, ml_operand b);
ML_IMPORT("logicalOr") ml_operand ml_logical_or(ml_operand a, ml_operand b);
ML_IMPORT("logicalXor") ml_operand ml_logical_xor(ml_operand a, ml_operand b);
ML_IMPORT("logicalNot") ml_operand ml_logical_not(ml_operand input);
ML_IMPORT("isNaN") ml_operand ml_is_nan(ml_operand input);
ML_IMPORT("isInfinite") ml_operand ml_is_infinite(ml_operand input);

ML_IMPORT("abs") ml_operand ml_abs(ml_operand input);
ML_IMPORT("ceil") ml_operand ml_ceil(ml_operand input);
ML_IMPORT("cos") ml_operand ml_cos(ml_operand input);
ML_IMPORT("erf") ml_operand ml_erf(ml_operand input);
ML_IMPORT("exp") ml_operand ml_exp(ml_operand input);
ML_IMPORT("floor") ml_operand ml_floor(ml_operand input);
ML_IMPORT("identity") ml_operand ml_identity(ml_operand input);
ML_IMPORT("log") ml_operand ml_log(ml_operand input);
ML_IMPORT("neg") ml_operand ml_neg(ml_operand input);
ML_IMPORT("reciprocal") ml_operand ml_reciprocal(ml_operand input);
ML_IMPORT("roundEven") ml_operand ml_round_even(ml_operand input);
ML_IMPORT("sign") ml_operand ml_sign(ml_operand input);
ML_IMPORT("sin") ml_operand ml_sin(ml_operand input);
ML_IMPORT("sqrt") ml_operand ml_sqrt(ml_operand input);
ML_IMPORT("tan") ml_operand ml_tan(ml_operand input);

/* `type` is a kw_dtype. What is beyond an integer type becomes its nearest value, and NaN 0. */
ML_IMPORT("cast") ml_operand ml_cast(ml_operand input, kw_dtype type);
/* -INFINITY and INFINITY stand for no bound. */
ML_IMPORT("clamp") ml_operand ml_clamp(ml_operand input, double min_value, double max_value);
/* Where `condition` (KW_UINT8) is not 0, `true_value`; elsewhere `false_value`; broadcast. */
ML_IMPORT("where") ml_operand ml_where(ml_operand condition, ml_operand true_value, ml_operand false_value);

/* --- Activation functions ----------------------------------------------------------------------------------------- */

ML_IMPORT("elu") ml_operand ml_elu(ml_operand input, double alpha); /* alpha: 1 by WebNN's default */
ML_IMPORT("gelu") ml_operand ml_gelu(ml_operand input);
ML_IMPORT("hardSigmoid") ml_operand ml_hard_sigmoid(ml_operand input, double alpha, double beta); /* 0.2, 0.5 */
ML_IMPORT("hardSwish") ml_operand ml_hard_swish(ml_operand input);
ML_IMPORT("leakyRelu") ml_operand ml_leaky_relu(ml_operand input, double alpha); /* 0.01 */
ML_IMPORT("linear") ml_operand ml_linear(ml_operand input, double alpha, double beta); /* 1, 0 */
ML_IMPORT("prelu") ml_operand ml_prelu(ml_operand input, ml_operand slope);
ML_IMPORT("relu") ml_operand ml_relu(ml_operand input);
ML_IMPORT("sigmoid") ml_operand ml_sigmoid(ml_operand input);
ML_IMPORT("softmax") ml_operand ml_softmax(ml_operand input, uint32_t axis);
ML_IMPORT("softplus") ml_operand ml_softplus(ml_operand input);
ML_IMPORT("softsign") ml_operand ml_softsign(ml_operand input);
ML_IMPORT("tanh") ml_operand ml_tanh(ml_operand input);

/* --- Products of matrices ----------------------------------------------------------------------------------------- */

ML_IMPORT("matmul") ml_operand ml_matmul(ml_operand a, ml_operand b);
/* alpha * a' b' + beta * c; `c` may be ML_NONE. */
ML_IMPORT("gemm") ml_operand ml_gemm(ml_operand a, ml_operand b, ml_operand c, double alpha, double beta,
                                     uint32_t a_transpose, uint32_t b_transpose);

/* --- Shape -------------------------------------------------------------------------------------------------------- */

/* Lists are an address and a number of entries. An optional one is absent where its address is 0. In `new_shape` and
 * `sizes` a negative number is an open dimension of an operand. */
ML_IMPORT("reshape") ml_operand ml_reshape(ml_operand input, const int32_t *new_shape, uint32_t rank);
ML_IMPORT("expand") ml_operand ml_expand(ml_operand input, const int32_t *new_shape, uint32_t rank);
ML_IMPORT("transpose") ml_operand ml_transpose(ml_operand input, const uint32_t *permutation, uint32_t rank);
ML_IMPORT("reverse") ml_operand ml_reverse(ml_operand input, const uint32_t *axes, uint32_t n_axes);
ML_IMPORT("concat") ml_operand ml_concat(const ml_operand *inputs, uint32_t n_inputs, uint32_t axis);
/* `count` equal parts, or parts of these sizes, as many as `count` says; so many handles are written. */
ML_IMPORT("split") kw_errno ml_split(ml_operand input, uint32_t count, const uint32_t *sizes, uint32_t n_sizes,
                                     uint32_t axis, ml_operand *outputs);
ML_IMPORT("slice") ml_operand ml_slice(ml_operand input, const uint32_t *starts, uint32_t n_starts,
                                       const int32_t *sizes, uint32_t n_sizes, const uint32_t *strides,
                                       uint32_t n_strides);
#define ML_PAD_CONSTANT 0u
#define ML_PAD_EDGE 1u
#define ML_PAD_REFLECTION 2u
ML_IMPORT("pad") ml_operand ml_pad(ml_operand input, const uint32_t *beginning, uint32_t n_beginning,
                                   const uint32_t *ending, uint32_t n_ending, uint32_t mode, double value);
ML_IMPORT("tile") ml_operand ml_tile(ml_operand input, const uint32_t *repetitions, uint32_t rank);

/* --- Convolution and pooling -------------------------------------------------------------------------------------- */

/* Structures of options: what is 0 has WebNN's default, and so has all of it where the address is 0. Pairs are height
 * and width; padding is before and after the height, then before and after the width. */
#define ML_NCHW 0u
#define ML_NHWC 1u
#define ML_OIHW 0u
#define ML_HWIO 1u
#define ML_OHWI 2u
#define ML_IHWO 3u
typedef struct ml_conv2d_options {
  uint32_t padding[4];
  uint32_t strides[2];
  uint32_t dilations[2];
  uint32_t groups;
  uint32_t input_layout;  /* ML_NCHW, ML_NHWC */
  uint32_t filter_layout; /* ML_OIHW, ML_HWIO, ML_OHWI, ML_IHWO */
} ml_conv2d_options;
ML_IMPORT("conv2d") ml_operand ml_conv2d(ml_operand input, ml_operand filter, ml_operand bias,
                                         const ml_conv2d_options *options);

#define ML_TRANSPOSE_IOHW 0u
#define ML_TRANSPOSE_HWOI 1u
#define ML_TRANSPOSE_OHWI 2u
typedef struct ml_conv_transpose2d_options {
  uint32_t padding[4];
  uint32_t strides[2];
  uint32_t dilations[2];
  uint32_t output_padding[2];
  uint32_t output_sizes[2]; /* both 0: computed */
  uint32_t groups;
  uint32_t input_layout;
  uint32_t filter_layout; /* ML_TRANSPOSE_IOHW … */
} ml_conv_transpose2d_options;
ML_IMPORT("convTranspose2d") ml_operand ml_conv_transpose2d(ml_operand input, ml_operand filter, ml_operand bias,
                                                            const ml_conv_transpose2d_options *options);

typedef struct ml_pool2d_options {
  uint32_t window_dimensions[2]; /* both 0: the whole input */
  uint32_t padding[4];
  uint32_t strides[2];
  uint32_t dilations[2];
  uint32_t layout;                /* ML_NCHW, ML_NHWC */
  uint32_t output_shape_rounding; /* 0 down, 1 up */
  uint32_t output_sizes[2];       /* both 0: computed */
} ml_pool2d_options;
ML_IMPORT("averagePool2d") ml_operand ml_average_pool2d(ml_operand input, const ml_pool2d_options *options);
ML_IMPORT("l2Pool2d") ml_operand ml_l2_pool2d(ml_operand input, const ml_pool2d_options *options);
ML_IMPORT("maxPool2d") ml_operand ml_max_pool2d(ml_operand input, const ml_pool2d_options *options);

/* --- Normalization ------------------------------------------------------------------------------------------------ */

/* `scale` and `bias` may be ML_NONE. WebNN's defaults: axis 1, epsilon 1e-5, ML_NCHW. */
ML_IMPORT("batchNormalization") ml_operand ml_batch_normalization(ml_operand input, ml_operand mean,
                                                                  ml_operand variance, ml_operand scale,
                                                                  ml_operand bias, uint32_t axis, double epsilon);
ML_IMPORT("instanceNormalization") ml_operand ml_instance_normalization(ml_operand input, ml_operand scale,
                                                                        ml_operand bias, double epsilon,
                                                                        uint32_t layout);
/* Axes absent: all but the first. */
ML_IMPORT("layerNormalization") ml_operand ml_layer_normalization(ml_operand input, ml_operand scale, ml_operand bias,
                                                                  const uint32_t *axes, uint32_t n_axes,
                                                                  double epsilon);

/* --- Reductions --------------------------------------------------------------------------------------------------- */

/* Axes absent: all. */
ML_IMPORT("reduceL1") ml_operand ml_reduce_l1(ml_operand input, const uint32_t *axes, uint32_t n_axes,
                                              uint32_t keep_dimensions);
ML_IMPORT("reduceL2") ml_operand ml_reduce_l2(ml_operand input, const uint32_t *axes, uint32_t n_axes,
                                              uint32_t keep_dimensions);
ML_IMPORT("reduceLogSum") ml_operand ml_reduce_log_sum(ml_operand input, const uint32_t *axes, uint32_t n_axes,
                                                       uint32_t keep_dimensions);
ML_IMPORT("reduceLogSumExp") ml_operand ml_reduce_log_sum_exp(ml_operand input, const uint32_t *axes, uint32_t n_axes,
                                                              uint32_t keep_dimensions);
ML_IMPORT("reduceMax") ml_operand ml_reduce_max(ml_operand input, const uint32_t *axes, uint32_t n_axes,
                                                uint32_t keep_dimensions);
ML_IMPORT("reduceMean") ml_operand ml_reduce_mean(ml_operand input, const uint32_t *axes, uint32_t n_axes,
                                                  uint32_t keep_dimensions);
ML_IMPORT("reduceMin") ml_operand ml_reduce_min(ml_operand input, const uint32_t *axes, uint32_t n_axes,
                                                uint32_t keep_dimensions);
ML_IMPORT("reduceProduct") ml_operand ml_reduce_product(ml_operand input, const uint32_t *axes, uint32_t n_axes,
                                                        uint32_t keep_dimensions);
ML_IMPORT("reduceSum") ml_operand ml_reduce_sum(ml_operand input, const uint32_t *axes, uint32_t n_axes,
                                                uint32_t keep_dimensions);
ML_IMPORT("reduceSumSquare") ml_operand ml_reduce_sum_square(ml_operand input, const uint32_t *axes, uint32_t n_axes,
                                                             uint32_t keep_dimensions);
/* `output_type`: KW_INT32 or KW_INT64; 0 for KW_INT32. Of equal elements the first. */
ML_IMPORT("argMin") ml_operand ml_arg_min(ml_operand input, uint32_t axis, uint32_t keep_dimensions,
                                          kw_dtype output_type);
ML_IMPORT("argMax") ml_operand ml_arg_max(ml_operand input, uint32_t axis, uint32_t keep_dimensions,
                                          kw_dtype output_type);
ML_IMPORT("cumulativeSum") ml_operand ml_cumulative_sum(ml_operand input, uint32_t axis, uint32_t exclusive,
                                                        uint32_t reversed);
/* The upper or lower triangle of the last two dimensions, up to a diagonal; 0 elsewhere. */
ML_IMPORT("triangular") ml_operand ml_triangular(ml_operand input, uint32_t upper, int32_t diagonal);

/* --- Gathering and scattering ------------------------------------------------------------------------------------- */

/* Indices: KW_INT32, KW_UINT32 or KW_INT64. A negative one counts from the end; one beyond an end means the last
 * element there. */
ML_IMPORT("gather") ml_operand ml_gather(ml_operand input, ml_operand indices, uint32_t axis);
ML_IMPORT("gatherElements") ml_operand ml_gather_elements(ml_operand input, ml_operand indices, uint32_t axis);
ML_IMPORT("gatherND") ml_operand ml_gather_nd(ml_operand input, ml_operand indices);
ML_IMPORT("scatterElements") ml_operand ml_scatter_elements(ml_operand input, ml_operand indices, ml_operand updates,
                                                            uint32_t axis);
ML_IMPORT("scatterND") ml_operand ml_scatter_nd(ml_operand input, ml_operand indices, ml_operand updates);

/* --- Quantization ------------------------------------------------------------------------------------------------- */

ML_IMPORT("quantizeLinear") ml_operand ml_quantize_linear(ml_operand input, ml_operand scale, ml_operand zero_point);
ML_IMPORT("dequantizeLinear") ml_operand ml_dequantize_linear(ml_operand input, ml_operand scale,
                                                              ml_operand zero_point);

/* --- Recurrent networks ------------------------------------------------------------------------------------------- */

/* Activations by place; 0 is WebNN's default there. */
#define ML_ACTIVATION_DEFAULT 0u
#define ML_ACTIVATION_RELU 1u
#define ML_ACTIVATION_SIGMOID 2u
#define ML_ACTIVATION_TANH 3u
#define ML_FORWARD 0u
#define ML_BACKWARD 1u
#define ML_BOTH 2u
#define ML_GRU_ZRN 0u /* the order of the gates in weights and biases */
#define ML_GRU_RZN 1u
#define ML_LSTM_IOFG 0u
#define ML_LSTM_IFGO 1u

typedef struct ml_gru_options {
  ml_operand bias;
  ml_operand recurrent_bias;
  ml_operand initial_hidden_state;
  uint32_t reset_before; /* 1: resetAfter is false */
  uint32_t return_sequence;
  uint32_t direction;
  uint32_t layout; /* ML_GRU_ZRN, ML_GRU_RZN */
  uint32_t activations[2];
} ml_gru_options;
/* Writes the last hidden state, and with `return_sequence` all hidden states. */
ML_IMPORT("gru") kw_errno ml_gru(ml_operand input, ml_operand weight, ml_operand recurrent_weight, uint32_t steps,
                                 uint32_t hidden_size, const ml_gru_options *options, ml_operand *outputs);

typedef struct ml_gru_cell_options {
  ml_operand bias;
  ml_operand recurrent_bias;
  uint32_t reset_before;
  uint32_t layout;
  uint32_t activations[2];
} ml_gru_cell_options;
ML_IMPORT("gruCell") ml_operand ml_gru_cell(ml_operand input, ml_operand weight, ml_operand recurrent_weight,
                                            ml_operand hidden_state, uint32_t hidden_size,
                                            const ml_gru_cell_options *options);

typedef struct ml_lstm_options {
  ml_operand bias;
  ml_operand recurrent_bias;
  ml_operand peephole_weight;
  ml_operand initial_hidden_state;
  ml_operand initial_cell_state;
  uint32_t return_sequence;
  uint32_t direction;
  uint32_t layout; /* ML_LSTM_IOFG, ML_LSTM_IFGO */
  uint32_t activations[3];
} ml_lstm_options;
/* Writes the last hidden state, the last cell state, and with `return_sequence` all hidden states. */
ML_IMPORT("lstm") kw_errno ml_lstm(ml_operand input, ml_operand weight, ml_operand recurrent_weight, uint32_t steps,
                                   uint32_t hidden_size, const ml_lstm_options *options, ml_operand *outputs);

typedef struct ml_lstm_cell_options {
  ml_operand bias;
  ml_operand recurrent_bias;
  ml_operand peephole_weight;
  uint32_t layout;
  uint32_t activations[3];
} ml_lstm_cell_options;
/* Writes the hidden state and the cell state. */
ML_IMPORT("lstmCell") kw_errno ml_lstm_cell(ml_operand input, ml_operand weight, ml_operand recurrent_weight,
                                            ml_operand hidden_state, ml_operand cell_state, uint32_t hidden_size,
                                            const ml_lstm_cell_options *options, ml_operand *outputs);

/* --- Resampling --------------------------------------------------------------------------------------------------- */

#define ML_NEAREST_NEIGHBOR 0u
#define ML_LINEAR 1u
typedef struct ml_resample2d_options {
  double scales[2];  /* both 0: 1 */
  uint32_t mode;     /* ML_NEAREST_NEIGHBOR, ML_LINEAR: half-pixel centres, no antialiasing */
  uint32_t sizes[2]; /* both 0: by the scales */
  uint32_t axes[2];  /* both 0: 2 and 3 */
} ml_resample2d_options;
ML_IMPORT("resample2d") ml_operand ml_resample2d(ml_operand input, const ml_resample2d_options *options);

/* --- Operators of this project's own ------------------------------------------------------------------------------ */

#define MLX_IMPORT(name) __attribute__((import_module("kserve_wasm_mlx"), import_name(name))) extern

/* Keeps a graph that was built, under a name and for as long as the model is served: kw_load_by_name finds it in every
 * later instance, which then need not build it. Of several of one name the first is kept. In `load` alone, which sees
 * nothing of any request. */
MLX_IMPORT("keep") kw_errno mlx_keep(kw_graph graph, const char *name, uint32_t name_length);

/* The operand's shape, KW_INT32 [rank]: for arithmetic on sizes that are known only when the graph runs. */
MLX_IMPORT("shape") ml_operand mlx_shape(ml_operand input);
/* The `k` largest (or, with `largest` 0, smallest) along an axis, in order, of equal ones the first first. Writes two
 * handles: the values, and where they are, KW_INT32. */
MLX_IMPORT("topK") kw_errno mlx_top_k(ml_operand input, uint32_t k, uint32_t axis, uint32_t largest,
                                      ml_operand *outputs);
/* Boxes [batches, n, 4], as two corners (y1, x1, y2, x2), or with `center_point_box` as (x, y, width, height); scores
 * [batches, classes, n]. Gives the boxes that stay, KW_INT32 [open, 3]: batch, class and number of each, the best of a
 * class first. As ONNX's NonMaxSuppression. */
MLX_IMPORT("nonMaxSuppression") ml_operand mlx_non_max_suppression(ml_operand boxes, ml_operand scores,
                                                                   uint32_t max_output_boxes_per_class,
                                                                   double iou_threshold, double score_threshold,
                                                                   uint32_t center_point_box);
/* resample2d to sizes that an operand gives, KW_INT32 [2]: cut to 1 and `max_sizes` (two numbers), so that it is known
 * what the result can take. `axes`: two, or absent for 2 and 3. */
MLX_IMPORT("resample2dTo") ml_operand mlx_resample2d_to(ml_operand input, ml_operand sizes, const uint32_t *max_sizes,
                                                        uint32_t n_max_sizes, uint32_t mode, const uint32_t *axes,
                                                        uint32_t n_axes);
/* slice from where an operand says, KW_INT32 [rank]. What reaches beyond the input fails when the graph runs. */
MLX_IMPORT("sliceFrom") ml_operand mlx_slice_from(ml_operand input, ml_operand starts, const int32_t *sizes,
                                                  uint32_t n_sizes);

/* --- Helpers ------------------------------------------------------------------------------------------------------ */

/* A constant without dimensions. */
static inline ml_operand ml_scalar_f32(ml_builder builder, float value) {
  return ml_constant(builder, KW_FP32, 0, 0, &value, sizeof value);
}
static inline ml_operand ml_scalar_i32(ml_builder builder, int32_t value) {
  return ml_constant(builder, KW_INT32, 0, 0, &value, sizeof value);
}
static inline ml_operand ml_scalar_i64(ml_builder builder, int64_t value) {
  return ml_constant(builder, KW_INT64, 0, 0, &value, sizeof value);
}
/* A constant vector. */
static inline ml_operand ml_vector_f32(ml_builder builder, const float *values, uint32_t count) {
  int64_t dims[1] = {count};
  return ml_constant(builder, KW_FP32, dims, 1, values, count * (uint32_t)sizeof *values);
}
/* The graph that gives one operand. */
static inline kw_errno ml_build_one(ml_builder builder, const char *name, uint32_t name_length, ml_operand operand,
                                    kw_graph *graph_out) {
  ml_output output = {name, name_length, operand};
  return ml_build(builder, &output, 1, graph_out);
}

#ifdef __cplusplus
}
#endif

#endif
