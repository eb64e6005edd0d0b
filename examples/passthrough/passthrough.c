/* passthrough.c: the smallest whole guest. The request's tensor goes to the graph and the graph's to the response;
 * neither enters the guest's memory.
 *
 * In:  x, as the graph takes it      Out: y, as the graph gives it
 *
 *     python -m ziglang cc @examples/guest.flags -I kserve_wasm/include examples/passthrough/passthrough.c -o guest.wasm
 */
#include "kserve_wasm.h"

static kw_context context;

KW_EXPORT("load") kw_errno load(void) {
  kw_graph graph;
  KW_TRY(kw_load_by_name(KW_STR("default"), &graph));
  return kw_init_execution_context(graph, &context);
}

KW_EXPORT("infer") kw_errno infer(void) {
  kw_tensor x, y;
  KW_TRY(kw_input_by_name(KW_STR("x"), &x));
  KW_TRY(kw_set_input_tensor(context, 0, x));
  KW_TRY(kw_compute(context));
  KW_TRY(kw_get_output_tensor(context, 0, &y));
  return kw_output_set(KW_STR("y"), y);
}
