/* image.h: what a guest asks of a picture before graphs take it. */
#ifndef IMAGE_H
#define IMAGE_H

#include <stdbool.h>

#include "kserve_wasm.h"

#define IMAGE_MAX_SIDE 8192

/* Whether `image` is UINT8 [1, height, width, 3], with sides of `min_side` to IMAGE_MAX_SIDE pixels of which none is more
 * than `max_aspect` times the other. */
static bool image_fits(kw_tensor image, int64_t min_side, int64_t max_aspect) {
  kw_tensor_info info;
  int64_t dims[4];
  if (kw_tensor_info_get(image, &info) != KW_SUCCESS || info.dtype != KW_UINT8 || info.n_dims != 4) return false;
  if (kw_tensor_shape(image, dims, 4) != KW_SUCCESS || dims[0] != 1 || dims[3] != 3) return false;
  int64_t shorter = dims[1] < dims[2] ? dims[1] : dims[2], longer = dims[1] + dims[2] - shorter;
  return shorter >= min_side && longer <= IMAGE_MAX_SIDE && longer <= max_aspect * shorter;
}

#endif
