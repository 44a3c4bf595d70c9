/* What a thread of an emulated kernel may touch: "device" buffers, shared memory, its own stack, the kernel's parameters. The compiler tells
 * of every load and store: kernels are compiled with -fsanitize=thread, and the functions that this calls are the ones below, not a sanitizer's.
 * Owns the buffers and, for every two bytes, who wrote and who read them last: an access outside, a read of what nobody wrote, and two
 * accesses without a barrier between them (one a write) end the kernel. So does host code that follows a device pointer. One thread.
 * Rules: atomics are not compared with one another, nor with plain accesses; arrays of single bytes that several threads write look like races. */
#include <stdio.h>
#include <stdlib.h>

#include "tests/emulation/state.h"

extern "C" {
extern char __start_emulated_shared[] __attribute__((weak));
extern char __stop_emulated_shared[] __attribute__((weak));
}

namespace emulation
{
enum { GRANULE = 2, BUFFERS = 256, NOBODY = -1, WHOLE_WARP = 1 << 16, WHOLE_BLOCK = 1 << 17 };

struct visit {
    uint32_t serial, block_epoch, warp_epoch;
    int thread; /* or NOBODY; reads: or WHOLE_WARP + warp, or WHOLE_BLOCK */
};

struct cell {
    visit write, read;
    uint32_t readers_launch; /* of a launch in which several blocks read it */
    bool set;
};

struct buffer {
    char *at;
    size_t bytes;
    cell *cells;
};

static buffer buffers[BUFFERS];
static buffer shared;

static cell *new_cells(size_t bytes)
{
    const size_t n = bytes / GRANULE + 1;
    cell *c = (cell *)calloc(n, sizeof *c);
    if (c == nullptr)
        abort();
    for (size_t i = 0; i < n; i++)
        c[i].write.thread = c[i].read.thread = NOBODY;
    return c;
}

static bool holds(const buffer *b, const char *at) { return b->at != nullptr && at >= b->at && at < b->at + (b->bytes > 0 ? b->bytes : 1); }

static buffer *buffer_of(const char *at)
{
    static buffer *last = buffers; /* the next access is often to the same one */
    if (holds(last, at))
        return last;
    for (buffer &b : buffers)
        if (holds(&b, at))
            return last = &b;
    return nullptr;
}

static bool inside(const buffer *b, const char *at, size_t bytes)
{
    return b != nullptr && bytes <= b->bytes && (size_t)(at - b->at) <= b->bytes - bytes;
}

static int warp_of(int thread) { return thread >= WHOLE_WARP ? thread - WHOLE_WARP : thread / 32; }

/* Has what `v` did surely happen before what the running thread does now? */
static bool ordered(const visit *v)
{
    if (v->thread == NOBODY || v->serial < now.launch)
        return true;
    if (v->serial != now.serial)
        return false;
    if (v->thread == now.thread || v->block_epoch < now.block_epoch)
        return true;
    return v->thread < WHOLE_BLOCK && warp_of(v->thread) == now.thread / 32 && v->warp_epoch < now.warp_epoch[now.thread / 32];
}

static void note_read(cell *c)
{
    visit *r = &c->read;
    const int warp = now.thread / 32;
    const bool together = r->thread != NOBODY && r->serial == now.serial && r->block_epoch == now.block_epoch;
    int reader = now.thread;
    if (r->thread != NOBODY && r->serial >= now.launch && r->serial != now.serial)
        c->readers_launch = now.launch;
    if (together && r->thread != now.thread)
        reader = r->thread < WHOLE_BLOCK && warp_of(r->thread) == warp ? WHOLE_WARP + warp : (int)WHOLE_BLOCK;
    *r = {now.serial, now.block_epoch, now.warp_epoch[warp], reader};
}

static void describe(char out[96], const buffer *b, const char *at)
{
    if (b == &shared)
        snprintf(out, 96, "shared memory at byte %zu", (size_t)(at - b->at));
    else
        snprintf(out, 96, "byte %zu of a buffer of %zu bytes", (size_t)(at - b->at), b->bytes);
}

static void visit_cell(const buffer *b, cell *c, const char *at, bool write)
{
    char where[96];
    if (b == &shared && c->write.serial != now.serial) /* another block's */
        *c = {{0, 0, 0, NOBODY}, {0, 0, 0, NOBODY}, 0, false};
    const bool race = !ordered(&c->write) || (write && (!ordered(&c->read) || c->readers_launch == now.launch));
    if (race) {
        describe(where, b, at);
        const bool written = !ordered(&c->write);
        fail("%s %s, which another thread of %s block %s; no barrier lies between", write ? "writes" : "reads", where,
             (written ? c->write : c->read).serial == now.serial ? "the same" : "another", written ? "wrote" : "read");
    }
    if (!write && !c->set) {
        describe(where, b, at);
        fail("reads %s, which nobody has written", where);
    }
    if (write) {
        c->write = {now.serial, now.block_epoch, now.warp_epoch[now.thread / 32], now.thread};
        c->set = true;
    } else {
        note_read(c);
    }
}

static void out_of_bounds(const char *at, size_t bytes, bool write)
{
    const buffer *near = nullptr;
    for (const buffer &b : buffers)
        if (b.at != nullptr && b.at <= at && (near == nullptr || b.at > near->at))
            near = &b;
    const char *what = write ? "writes" : "reads";
    if (any_stack(at))
        fail("%s %zu bytes of another thread's local memory", what, bytes);
    if (near != nullptr && (size_t)(at - near->at) < near->bytes + 4096)
        fail("out of bounds: %s %zu bytes at byte %zu of a buffer of %zu bytes", what, bytes, (size_t)(at - near->at), near->bytes);
    fail("out of bounds: %s %zu bytes at an address that is no device memory", what, bytes);
}

void touch(const void *address, size_t bytes, bool write, bool atomic)
{
    const char *at = (const char *)address;
    if (now.in_kernel && (own_stack(at, bytes) || (!write && at >= now.params && at + bytes <= now.params + now.param_bytes)))
        return;
    buffer *b = buffer_of(at);
    if (!now.in_kernel) {
        if (b != nullptr)
            fail_on_host("host code follows a device pointer");
        return;
    }
    if (b == nullptr && at >= __start_emulated_shared && at < __stop_emulated_shared) {
        if (shared.at == nullptr) {
            shared.at = __start_emulated_shared;
            shared.bytes = (size_t)(__stop_emulated_shared - __start_emulated_shared);
            shared.cells = new_cells(shared.bytes);
        }
        b = &shared;
    }
    if (!inside(b, at, bytes))
        out_of_bounds(at, bytes, write);
    if (atomic)
        return;
    for (size_t i = (size_t)(at - b->at) / GRANULE; i <= ((size_t)(at - b->at) + bytes - 1) / GRANULE; i++)
        visit_cell(b, &b->cells[i], at, write);
}

static void mark_set(buffer *b, const char *at, size_t bytes)
{
    for (size_t i = (size_t)(at - b->at) / GRANULE; bytes > 0 && i <= ((size_t)(at - b->at) + bytes - 1) / GRANULE; i++)
        b->cells[i].set = true;
}
} // namespace emulation

using namespace emulation;

cudaError_t cudaMalloc(void **out, size_t bytes)
{
    *out = nullptr;
    for (buffer &b : buffers)
        if (b.at == nullptr) {
            b.at = (char *)aligned_alloc(256, (bytes + 512) / 256 * 256);
            if (b.at == nullptr)
                return cudaErrorMemoryAllocation;
            b.bytes = bytes;
            b.cells = new_cells(bytes);
            *out = b.at;
            return cudaSuccess;
        }
    return cudaErrorMemoryAllocation;
}

cudaError_t cudaFree(void *p)
{
    buffer *b = p != nullptr ? buffer_of((char *)p) : nullptr;
    if (p == nullptr)
        return cudaSuccess;
    if (b == nullptr || b->at != p)
        return cudaErrorInvalidValue;
    free(b->at);
    free(b->cells);
    *b = {};
    return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind, cudaStream_t stream)
{
    buffer *b = buffer_of((char *)to), *source = buffer_of((const char *)from);
    const bool into = kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice;
    const bool out_of = kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
    (void)stream;
    if ((into && !inside(b, (char *)to, bytes)) || (out_of && !inside(source, (const char *)from, bytes)))
        return cudaErrorInvalidValue;
    memcpy(to, from, bytes);
    if (into)
        mark_set(b, (char *)to, bytes);
    return failed() ? cudaErrorLaunchFailure : cudaSuccess;
}

cudaError_t cudaMemsetAsync(void *to, int value, size_t bytes, cudaStream_t stream)
{
    buffer *b = buffer_of((char *)to);
    (void)stream;
    if (!inside(b, (char *)to, bytes))
        return cudaErrorInvalidValue;
    memset(to, value, bytes);
    mark_set(b, (char *)to, bytes);
    return cudaSuccess;
}

cudaError_t cudaGetLastError(void) { return failed() ? cudaErrorLaunchFailure : cudaSuccess; }
cudaError_t cudaStreamSynchronize(cudaStream_t stream) { return (void)stream, cudaGetLastError(); }
cudaError_t cudaGetDeviceCount(int *count) { return *count = 1, cudaSuccess; }
cudaError_t cudaGetDevice(int *device) { return *device = 0, cudaSuccess; }
/* A device of one processor: few blocks, each with much to walk over. */
cudaError_t cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr attribute, int device)
{
    (void)attribute, (void)device;
    return *value = 1, cudaSuccess;
}

const char *cudaGetErrorString(cudaError_t error)
{
    return error == cudaErrorLaunchFailure ? failure() : error == cudaErrorMemoryAllocation ? "out of memory" : error == cudaSuccess ? "no error" : "invalid argument";
}

void emulation_reset(void) { emulation_forget(); }

/* What code compiled with -fsanitize=thread calls. */
extern "C" {
void __tsan_init(void) {}
void __tsan_func_entry(void *) {}
void __tsan_func_exit(void) {}
#define ACCESS(bytes)                                                              \
    void __tsan_read##bytes(void *p) { touch(p, bytes, false, false); }            \
    void __tsan_write##bytes(void *p) { touch(p, bytes, true, false); }            \
    void __tsan_unaligned_read##bytes(void *p) { touch(p, bytes, false, false); }  \
    void __tsan_unaligned_write##bytes(void *p) { touch(p, bytes, true, false); }
ACCESS(1)
ACCESS(2)
ACCESS(4)
ACCESS(8)
ACCESS(16)
void __tsan_read_range(void *p, size_t bytes) { touch(p, bytes, false, false); }
void __tsan_write_range(void *p, size_t bytes) { touch(p, bytes, true, false); }
}
