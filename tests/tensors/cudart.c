// CUDA's memory functions over host memory, with their signatures and status codes: enough to call them through.
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { SUCCESS = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, INVALID_DEVICE = 101, INVALID_HANDLE = 400 };
enum { BLOCKS = 64, PER_THREAD_STREAM = 2 };

static struct { char *at; size_t size; int device; int on_host; } blocks[BLOCKS];
static _Thread_local int current;
static int last;
int devices = 2;

static int told(int status) { return status ? (last = status) : SUCCESS; }

static int take(void **pointer, size_t size, int on_host) {
  for (int i = 0; i < BLOCKS; i++) {
    if (blocks[i].at == NULL) {
      if (size > 1 << 20) return told(OUT_OF_MEMORY);
      blocks[i].at = aligned_alloc(256, (size + 255) / 256 * 256);
      blocks[i].size = size;
      blocks[i].device = current;
      blocks[i].on_host = on_host;
      *pointer = blocks[i].at;
      return SUCCESS;
    }
  }
  return told(OUT_OF_MEMORY);
}

static int drop(void *pointer, int on_host) {
  for (int i = 0; i < BLOCKS; i++) {
    if (blocks[i].at == pointer && blocks[i].on_host == on_host) {
      free(pointer);
      blocks[i].at = NULL;
      return SUCCESS;
    }
  }
  return told(INVALID_VALUE);
}

static int on_device(const char *at, size_t size) {
  for (int i = 0; i < BLOCKS; i++)
    if (blocks[i].at && !blocks[i].on_host && blocks[i].device == current && at >= blocks[i].at &&
        at + size <= blocks[i].at + blocks[i].size)
      return 1;
  return 0;
}

int cudaGetDeviceCount(int *count) { *count = devices; return devices ? SUCCESS : told(100); }
int cudaSetDevice(int device) { return device < devices ? (current = device, SUCCESS) : told(INVALID_DEVICE); }
int cudaMalloc(void **pointer, size_t size) { return take(pointer, size, 0); }
int cudaFree(void *pointer) { return drop(pointer, 0); }
int cudaMallocHost(void **pointer, size_t size) { return take(pointer, size, 1); }
int cudaFreeHost(void *pointer) { return drop(pointer, 1); }

int cudaMemcpyAsync(void *target, const void *source, size_t size, int kind, void *stream) {
  if (stream != (void *)PER_THREAD_STREAM) return told(INVALID_HANDLE);
  int to = kind == 1 || kind == 3, from = kind == 2 || kind == 3;
  if (kind < 1 || kind > 3 || on_device(target, size) != to || on_device(source, size) != from)
    return told(INVALID_VALUE);
  memcpy(target, source, size);
  return SUCCESS;
}

int cudaStreamSynchronize(void *stream) {
  return stream == (void *)PER_THREAD_STREAM ? SUCCESS : told(INVALID_HANDLE);
}

int cudaDeviceSynchronize(void) { return SUCCESS; }

int cudaGetLastError(void) { int status = last; last = SUCCESS; return status; }

const char *cudaGetErrorString(int status) {
  switch (status) {
    case INVALID_VALUE: return "invalid argument";
    case OUT_OF_MEMORY: return "out of memory";
    case 100: return "no CUDA-capable device is detected";
    case INVALID_DEVICE: return "invalid device ordinal";
    default: return "unrecognized error code";
  }
}
