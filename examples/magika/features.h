/* What magika's model sees of a file: its first and last bytes, without the whitespace around them.
 *
 * Plain C on bytes, without the host: the tests also build this file natively.
 */
#ifndef FEATURES_H
#define FEATURES_H

#include <stdbool.h>
#include <stdint.h>

#include "labels.h"

#define ROW_SIZE (BEG_SIZE + END_SIZE)

static bool is_space(uint8_t byte) { return byte == ' ' || (byte >= '\t' && byte <= '\r'); }

/* Fills one row of the model's input from the first and the last `size` bytes of a file.
 *
 * The row holds BEG_SIZE bytes from the first that is not whitespace, padded behind, then END_SIZE bytes up to the
 * last that is not, padded in front. False when fewer than MIN_SIZE bytes are left: the model is not asked then.
 */
static bool extract_features(const uint8_t *first, const uint8_t *last, uint32_t size, int32_t row[ROW_SIZE]) {
  uint32_t start = 0, end = size;
  while (start < size && is_space(first[start])) start++;
  while (end > 0 && is_space(last[end - 1])) end--;
  for (uint32_t i = 0; i < BEG_SIZE; i++) row[i] = start + i < size ? first[start + i] : PADDING;
  for (uint32_t i = 1; i <= END_SIZE; i++) row[ROW_SIZE - i] = i <= end ? last[end - i] : PADDING;
  return row[MIN_SIZE - 1] != PADDING;
}

/* Whether the bytes are UTF-8 by RFC 3629: no overlong form, no surrogate, nothing above U+10FFFF, nothing cut off. */
static bool is_utf8(const uint8_t *bytes, uint32_t size) {
  for (uint32_t i = 0; i < size;) {
    uint8_t lead = bytes[i++];
    if (lead < 0x80) continue;
    if (lead < 0xC2 || lead > 0xF4) return false;
    uint32_t more = lead < 0xE0 ? 1 : lead < 0xF0 ? 2 : 3;
    if (more > size - i) return false;
    uint8_t low = lead == 0xE0 ? 0xA0 : lead == 0xF0 ? 0x90 : 0x80;
    uint8_t high = lead == 0xED ? 0x9F : lead == 0xF4 ? 0x8F : 0xBF;
    for (; more > 0; more--, i++, low = 0x80, high = 0xBF) {
      if (bytes[i] < low || bytes[i] > high) return false;
    }
  }
  return true;
}

#endif
