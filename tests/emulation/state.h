/* What emulation.cpp and memory.cpp share: the launch that runs, and how a kernel is ended. Private to tests/emulation. */
#ifndef MOE_TESTS_EMULATION_STATE_H
#define MOE_TESTS_EMULATION_STATE_H

#include "tests/emulation/cuda_runtime.h"

namespace emulation
{
struct running {
    bool in_kernel;
    const char *kernel;
    const char *params; /* of the kernel: read by every thread */
    size_t param_bytes;
    int thread;
    uint32_t serial, launch; /* of the block, from 1 for the first of the process; of the first block of this launch */
    uint32_t block_epoch;    /* barriers passed by the block */
    uint32_t warp_epoch[32]; /* warp functions finished      */
};
extern running now;

/* Ends the launch from inside a thread of the kernel. */
[[noreturn]] void fail(const char *format, ...) __attribute__((format(printf, 1, 2)));
void fail_on_host(const char *sentence);
bool failed();
const char *failure();
void emulation_forget();
/* A load or store of the running thread, or of host code when no kernel runs. */
void touch(const void *at, size_t bytes, bool write, bool atomic);
bool own_stack(const char *at, size_t bytes);
bool any_stack(const char *at);
} // namespace emulation

#endif
