/* kserve_wasm.h: the tensor ABI between a guest module and the kserve_wasm host.
 *
 * A guest is a WebAssembly core module that exports
 *
 *     memory                    its linear memory
 *     uint32_t infer(void)      answers one request; KW_SUCCESS, or any other value when it fails
 *     uint32_t load(void)       optional: called once in every new instance, before its first infer; what it opens and
 *                               sets is there, as it left it, at every request of the instance
 *     void _initialize(void)    optional: the constructor of a WASI reactor, called before load
 *
 * and imports what it needs of the functions below, all from the module "kserve_wasm", beside WASI-NN's own
 * ("wasi_ephemeral_nn") whose graphs and execution contexts it shares. By default every request meets a fresh
 * instance: static data is as the module defines it, and nothing of an earlier request is there.
 *
 * Tensors are handles to host memory. Their bytes enter the guest's memory only where it reads them. Handles end with
 * the request; kw_tensor_drop ends one earlier. Handle 0 is never valid, and no handle is given twice. Names are UTF-8,
 * given by address and length, and of at most 4096 bytes.
 *
 * Every function returns a kw_errno. Outputs through pointers are written only on KW_SUCCESS, except that a buffer
 * that is too small gets the needed length in *length_out beside KW_TOO_LARGE. A range outside the guest's memory is
 * KW_MISSING_MEMORY; a handle that is not alive is KW_INVALID_ARGUMENT. What a host function finds wrong is also kept
 * as the reason that the client sees if infer then fails.
 */
#ifndef KSERVE_WASM_H
#define KSERVE_WASM_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define KW_ABI_VERSION 1

/* The numbers of WASI-NN's nn_errno. */
typedef uint32_t kw_errno;
#define KW_SUCCESS 0u
#define KW_INVALID_ARGUMENT 1u
#define KW_INVALID_ENCODING 2u
#define KW_MISSING_MEMORY 3u
#define KW_BUSY 4u
#define KW_RUNTIME_ERROR 5u
#define KW_UNSUPPORTED_OPERATION 6u
#define KW_TOO_LARGE 7u
#define KW_NOT_FOUND 8u

/* Element types: the numbers of ONNX's TensorProto.DataType. */
typedef uint32_t kw_dtype;
#define KW_FP32 1u
#define KW_UINT8 2u
#define KW_INT8 3u
#define KW_UINT16 4u
#define KW_INT16 5u
#define KW_INT32 6u
#define KW_INT64 7u
#define KW_BYTES 8u
#define KW_BOOL 9u
#define KW_FP16 10u
#define KW_FP64 11u
#define KW_UINT32 12u
#define KW_UINT64 13u
#define KW_BF16 16u

typedef uint32_t kw_tensor;  /* a tensor handle */
typedef uint32_t kw_graph;   /* a WASI-NN graph handle, from load or load_by_name */
typedef uint32_t kw_context; /* a WASI-NN execution context handle */

typedef struct kw_tensor_info {
  uint32_t dtype;    /* a kw_dtype */
  uint32_t n_dims;   /* 0 for a scalar */
  uint64_t elements; /* the product of the dimensions */
  uint64_t nbytes;   /* bytes that kw_tensor_read can give */
} kw_tensor_info;

/* Severity of a log line. */
#define KW_LOG_DEBUG 0u
#define KW_LOG_INFO 1u
#define KW_LOG_WARNING 2u
#define KW_LOG_ERROR 3u

/* Whose fault a failure is. */
#define KW_FAIL_INPUT 0u    /* the input is refused: the client gets HTTP 422, gRPC INVALID_ARGUMENT */
#define KW_FAIL_INTERNAL 1u /* the guest failed: HTTP 500, gRPC INTERNAL */

#define KW_IMPORT(name) __attribute__((import_module("kserve_wasm"), import_name(name))) extern
#define KW_EXPORT(name) __attribute__((export_name(name)))

/* A string literal as the two arguments, address and length, that names and messages are given by. */
#define KW_STR(literal) (literal), (uint32_t)(sizeof(literal) - 1)
/* Makes the calling function return the errno of `call`, unless that is KW_SUCCESS. */
#define KW_TRY(call)                          \
  do {                                        \
    kw_errno kw_errno_ = (call);              \
    if (kw_errno_ != KW_SUCCESS) return kw_errno_; \
  } while (0)

/* --- The request ------------------------------------------------------------------------------------------------ */

/* The number of input tensors in this request. */
KW_IMPORT("input_count") kw_errno kw_input_count(uint32_t *count_out);
/* The name of input `index`, in the request's order. */
KW_IMPORT("input_name") kw_errno kw_input_name(uint32_t index, char *buffer, uint32_t capacity, uint32_t *length_out);
/* Input `index`, in the request's order. KW_NOT_FOUND past the last. */
KW_IMPORT("input_by_index") kw_errno kw_input_by_index(uint32_t index, kw_tensor *tensor_out);
/* The input of this name. KW_NOT_FOUND when the client did not send it. */
KW_IMPORT("input_by_name") kw_errno kw_input_by_name(const char *name, uint32_t length, kw_tensor *tensor_out);
/* A parameter of the request, or of the model's configuration, as text: strings as they are, numbers in decimal,
 * booleans as "true" and "false". KW_NOT_FOUND when there is none. */
KW_IMPORT("parameter") kw_errno kw_parameter(const char *name, uint32_t length, char *buffer, uint32_t capacity,
                                             uint32_t *length_out);
/* The client's request id; of length 0 when it gave none. */
KW_IMPORT("request_id") kw_errno kw_request_id(char *buffer, uint32_t capacity, uint32_t *length_out);

/* --- Tensors ---------------------------------------------------------------------------------------------------- */

/* A new tensor with a copy of `data`. The length must be what type and shape ask for. KW_BYTES data is a sequence of
 * elements, each behind its length as a little-endian uint32_t. */
KW_IMPORT("tensor_create") kw_errno kw_tensor_create(kw_dtype dtype, const int64_t *dims, uint32_t n_dims,
                                                     const void *data, uint32_t data_length, kw_tensor *tensor_out);
/* The same without a copy: the tensor is this range of the guest's memory, which must not change while the handle or a
 * context that it was set on may still use it. What is an output when infer returns is copied then. Not for KW_BYTES;
 * the address must be a multiple of the element's size. */
KW_IMPORT("tensor_borrow") kw_errno kw_tensor_borrow(kw_dtype dtype, const int64_t *dims, uint32_t n_dims,
                                                     const void *data, uint32_t data_length, kw_tensor *tensor_out);
KW_IMPORT("tensor_info") kw_errno kw_tensor_info_get(kw_tensor tensor, kw_tensor_info *info_out);
/* The dimensions; `capacity` counts int64_t entries and must be at least n_dims. */
KW_IMPORT("tensor_shape") kw_errno kw_tensor_shape(kw_tensor tensor, int64_t *dims, uint32_t capacity);
/* Copies `length` bytes that start at byte `offset` of the tensor into the guest. Past the end: KW_TOO_LARGE. */
KW_IMPORT("tensor_read") kw_errno kw_tensor_read(kw_tensor tensor, uint64_t offset, void *buffer, uint32_t length);
KW_IMPORT("tensor_drop") kw_errno kw_tensor_drop(kw_tensor tensor);

/* --- The response ----------------------------------------------------------------------------------------------- */

/* Makes `tensor` the output of this name; the last call for a name counts. */
KW_IMPORT("output_set") kw_errno kw_output_set(const char *name, uint32_t length, kw_tensor tensor);
/* Whether the client wants the output of this name (1) or not (0): work for the others can be spared. */
KW_IMPORT("output_requested") kw_errno kw_output_requested(const char *name, uint32_t length, uint32_t *requested_out);
/* A parameter of the response, as text. */
KW_IMPORT("output_parameter") kw_errno kw_output_parameter(const char *name, uint32_t length, const char *value,
                                                           uint32_t value_length);
/* The reason of a failure, for the client to read; infer should then return a value other than KW_SUCCESS. The last call
 * counts, and its first 4096 bytes. */
KW_IMPORT("fail") kw_errno kw_fail(uint32_t whose, const char *message, uint32_t length);
/* A line for the server's log. KW_TOO_LARGE when the request has written as much as it may. */
KW_IMPORT("log") kw_errno kw_log(uint32_t severity, const char *message, uint32_t length);

/* --- Graphs: WASI-NN over handles ------------------------------------------------------------------------------- */

/* Index of the graph's input or output of this name, for the calls below and for WASI-NN's own. */
KW_IMPORT("graph_input_index") kw_errno kw_graph_input_index(kw_graph graph, const char *name, uint32_t length,
                                                             uint32_t *index_out);
KW_IMPORT("graph_output_index") kw_errno kw_graph_output_index(kw_graph graph, const char *name, uint32_t length,
                                                               uint32_t *index_out);
/* WASI-NN set_input and get_output for tensors that stay on the host. */
KW_IMPORT("set_input_tensor") kw_errno kw_set_input_tensor(kw_context context, uint32_t index, kw_tensor tensor);
KW_IMPORT("get_output_tensor") kw_errno kw_get_output_tensor(kw_context context, uint32_t index, kw_tensor *tensor_out);

/* Runs a graph once, without a context: one tensor for each of its inputs and outputs, in their order. `outputs` gets new
 * handles. */
KW_IMPORT("dispatch") kw_errno kw_dispatch(kw_graph graph, const kw_tensor *inputs, uint32_t n_inputs,
                                           kw_tensor *outputs, uint32_t n_outputs);

/* The whole way at once: runs the graph of this name on the request's inputs of the names of its own, and makes those of
 * its outputs that the client wants the response's. What a guest does whose model needs nothing before or after.
 * The graph may run only when the guest has returned, together with those of other requests. Its failure then ends the
 * request, whatever this returned. */
KW_IMPORT("run_graph") kw_errno kw_run_graph(const char *name, uint32_t length);

/* WASI-NN itself, as this header's guests need it. */
#define KW_NN_IMPORT(name) __attribute__((import_module("wasi_ephemeral_nn"), import_name(name))) extern
KW_NN_IMPORT("load_by_name") kw_errno kw_load_by_name(const char *name, uint32_t length, kw_graph *graph_out);
KW_NN_IMPORT("init_execution_context") kw_errno kw_init_execution_context(kw_graph graph, kw_context *context_out);
KW_NN_IMPORT("compute") kw_errno kw_compute(kw_context context);
/* Ends a graph and its contexts before the request does. */
KW_NN_IMPORT("unload") kw_errno kw_unload(kw_graph graph);

#ifdef __cplusplus
}
#endif

#endif
