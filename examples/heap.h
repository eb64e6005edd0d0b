/* heap.h: memory for a guest without a C library. It is taken in a row and given back together. */
#ifndef HEAP_H
#define HEAP_H

#include <stdint.h>

extern uint8_t __heap_base; /* the linker's: where static data ends */
static uint64_t heap_end;   /* 0 before the first use */

/* `size` bytes at a multiple of 8, or null when the sandbox's memory limit is reached. Not zeroed. */
static void *heap_take(uint64_t size) {
  uint64_t start = ((heap_end ? heap_end : (uintptr_t)&__heap_base) + 7) & ~7ull;
  uint64_t have = (uint64_t)__builtin_wasm_memory_size(0) << 16;
  if (size > UINT32_MAX - start) return 0;
  uint64_t end = start + size;
  if (end > have && __builtin_wasm_memory_grow(0, (end - have + 0xFFFF) >> 16) == SIZE_MAX) return 0;
  heap_end = end;
  return (void *)(uintptr_t)start;
}

/* Gives back what was taken since heap_end was `mark`; 0 for all. */
static inline void heap_give_back(uint64_t mark) { heap_end = mark; }

#endif
