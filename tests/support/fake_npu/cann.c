/* Stand-ins for the C functions of CANN that torch_npu calls, on host memory.
 *
 * One library that reports FAKE_NPU_COUNT devices. Memory, copies, streams and events work, so
 * that tensors can live on the device. A kernel launch fails: computing is the dispatch mode's
 * job (device.py), and what it does not catch must be an error, never garbage.
 * Functions that are not here and need no answer are generated beside this file (cann.py).
 */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { OK = 0, OUT_OF_MEMORY = 207001, NO_KERNEL = 500000 };
enum { CONTEXT_BASE = 0x1000, ALIGNMENT = 512, CORES = 24 };

static int device_now;

static int new_memory(void **out, size_t bytes) {
    return posix_memalign(out, ALIGNMENT, bytes ? bytes : ALIGNMENT) ? OUT_OF_MEMORY : OK;
}

static int new_handle(void **out) {
    *out = malloc(16);
    return *out ? OK : OUT_OF_MEMORY;
}

/* devices */
int aclrtGetDeviceCount(uint32_t *count) {
    const char *text = getenv("FAKE_NPU_COUNT");
    *count = text ? (uint32_t)atoi(text) : 1;
    return OK;
}
int aclrtSetDevice(int device) { device_now = device; return OK; }
int aclrtGetDevice(int *device) { *device = device_now; return OK; }
int aclrtGetCurrentContext(void **context) {
    *context = (void *)(intptr_t)(CONTEXT_BASE + device_now);
    return OK;
}
int aclrtSetCurrentContext(void *context) {
    device_now = (int)((intptr_t)context - CONTEXT_BASE);
    return OK;
}
int aclrtGetPrimaryCtxState(int device, uint32_t *flags, int *active) { *active = 1; return OK; }
int aclrtGetPhyDevIdByLogicDevId(int logical, int *physical) { *physical = logical; return OK; }
int aclrtDeviceCanAccessPeer(int *can, int device, int peer) { *can = 1; return OK; }
int aclrtDeviceGetBareTgid(int *pid) { *pid = 1; return OK; }
const char *aclrtGetSocName(void) { return "Ascend910B3"; }
const char *aclGetRecentErrMsg(void) { return "fake CANN: no device computes behind this library"; }
int aclGetDeviceCapability(uint32_t device, int kind, int64_t *value) { *value = CORES; return OK; }
int aclrtGetDeviceInfo(uint32_t device, int kind, int64_t *value) { *value = CORES; return OK; }
int aclrtGetDeviceResLimit(int device, int kind, uint32_t *value) { *value = CORES; return OK; }
int aclrtGetStreamResLimit(void *stream, int kind, uint32_t *value) { *value = CORES; return OK; }
int aclrtGetResInCurrentThread(int kind, uint32_t *value) { *value = CORES; return OK; }
int aclrtGetSysParamOpt(int option, int64_t *value) { *value = 0; return OK; }

/* memory: the device's is the host's */
int aclrtMalloc(void **out, size_t bytes, int policy) { return new_memory(out, bytes); }
int aclrtMallocAlign32(void **out, size_t bytes, int policy) { return new_memory(out, bytes); }
int aclrtMallocHost(void **out, size_t bytes) { return new_memory(out, bytes); }
int aclrtFree(void *memory) { free(memory); return OK; }
int aclrtFreeHost(void *memory) { free(memory); return OK; }
int aclrtMemcpy(void *to, size_t room, const void *from, size_t bytes, int kind) {
    memmove(to, from, bytes);
    return OK;
}
int aclrtMemcpyAsync(void *to, size_t room, const void *from, size_t bytes, int kind, void *stream) {
    memmove(to, from, bytes);
    return OK;
}
int aclrtMemset(void *to, size_t room, int value, size_t bytes) {
    memset(to, value, bytes);
    return OK;
}
int aclrtMemsetAsync(void *to, size_t room, int value, size_t bytes, void *stream) {
    memset(to, value, bytes);
    return OK;
}
int aclrtGetMemInfo(int kind, size_t *available, size_t *total) {
    *available = *total = (size_t)4 << 30;
    return OK;
}

/* streams and events: all is done when asked for */
int aclrtCreateStream(void **stream) { return new_handle(stream); }
int aclrtCreateStreamWithConfig(void **stream, uint32_t priority, uint32_t flags) {
    return new_handle(stream);
}
int aclrtDestroyStream(void *stream) { free(stream); return OK; }
int aclrtStreamGetId(void *stream, int *id) { *id = 1; return OK; }
int aclrtStreamQuery(void *stream, int *status) { *status = 0; return OK; }
int aclrtGetStreamOverflowSwitch(void *stream, uint32_t *on) { *on = 0; return OK; }
int aclrtCreateEvent(void **event) { return new_handle(event); }
int aclrtCreateEventWithFlag(void **event, uint32_t flags) { return new_handle(event); }
int aclrtCreateEventExWithFlag(void **event, uint32_t flags) { return new_handle(event); }
int aclrtDestroyEvent(void *event) { free(event); return OK; }
int aclrtQueryEventStatus(void *event, int *done) { *done = 1; return OK; }
int aclrtQueryEventWaitStatus(void *event, int *done) { *done = 1; return OK; }
int aclrtEventElapsedTime(float *milliseconds, void *start, void *end) {
    *milliseconds = 0.01f;
    return OK;
}

/* kernels: none */
int aclopCompileAndExecute(void) { return NO_KERNEL; }
int aclopCompileAndExecuteV2(void) { return NO_KERNEL; }

#include "unanswered.inc"
