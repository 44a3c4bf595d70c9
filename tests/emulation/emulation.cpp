/* How a grid runs on one CPU thread (cuda_runtime.h): the threads of a block are fibers, switched where they wait for one another; blocks run
 * one after the other. Every second launch takes threads and blocks from the last to the first, so that no order is relied on.
 * Owns the fibers and the state of the launch; memory.cpp owns what a thread may touch. One thread.
 * Rule: what a kernel does wrong ends the launch with a sentence that names kernel, block and thread; nothing after it runs. */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <xmmintrin.h>

#include "tests/emulation/state.h"

namespace emulation
{
enum { THREADS_MOST = 1024, WARP = 32, STACK_BYTES = 128 << 10, SLOT_BYTES = 32 };
enum thread_state { NOT_BEGUN, READY, AT_BARRIER, AT_WARP, DONE };

struct fiber {
    ucontext_t context;
    int thread; /* that it runs, -1: free */
};

struct thread {
    thread_state state;
    int on; /* fiber */
    const char *file;
    int line;
};

struct warp {
    unsigned arrived;
    uint32_t calls; /* finished: two sets of slots are enough, because a lane is at most one call ahead */
    size_t bytes;
    const char *file;
    int line;
    char slot[2][WARP][SLOT_BYTES];
};

running now; /* shared with memory.cpp */

static struct {
    thread threads[THREADS_MOST];
    warp warps[THREADS_MOST / WARP];
    fiber fibers[THREADS_MOST];
    ucontext_t scheduler;
    char *stacks;
    void (*call)(const void *);
    dim3 grid, block;
    uint3 block_at;
    int count, at_barrier;
    bool backwards;
    bool failed;
    char text[512];
} e;

uint3 block_index() { return e.block_at; }
uint3 block_size() { return {e.block.x, e.block.y, e.block.z}; }
uint3 grid_size() { return {e.grid.x, e.grid.y, e.grid.z}; }

static uint3 index_of(int thread)
{
    const unsigned i = (unsigned)thread;
    return {i % e.block.x, i / e.block.x % e.block.y, i / e.block.x / e.block.y};
}

uint3 thread_index() { return index_of(now.thread); }

bool failed() { return e.failed; }
const char *failure() { return e.text; }

void fail_on_host(const char *sentence)
{
    if (!e.failed)
        snprintf(e.text, sizeof e.text, "%s", sentence);
    e.failed = true;
}

void fail(const char *format, ...)
{
    char what[320];
    va_list args;
    va_start(args, format);
    vsnprintf(what, sizeof what, format, args);
    va_end(args);
    const uint3 t = index_of(now.thread);
    snprintf(e.text, sizeof e.text, "%s, block (%u, %u, %u), thread (%u, %u, %u): %s", now.kernel, e.block_at.x, e.block_at.y, e.block_at.z,
             t.x, t.y, t.z, what);
    e.failed = true;
    setcontext(&e.scheduler);
    abort();
}

void emulation_forget() { e.failed = false, e.text[0] = 0; }

bool own_stack(const char *at, size_t bytes)
{
    const char *base = e.stacks + (size_t)e.threads[now.thread].on * STACK_BYTES;
    return at >= base && at + bytes <= base + STACK_BYTES;
}

bool any_stack(const char *at) { return at >= e.stacks && at < e.stacks + (size_t)THREADS_MOST * STACK_BYTES; }

/* Leaves the fiber until somebody makes the thread READY. */
static void wait_as(thread_state state, const char *file, int line)
{
    const int me = now.thread;
    thread *t = &e.threads[me];
    t->state = state, t->file = file, t->line = line;
    swapcontext(&e.fibers[t->on].context, &e.scheduler);
    now.thread = me;
}

static void release_barrier()
{
    for (int i = 0; i < e.count; i++)
        e.threads[i].state = READY;
    e.at_barrier = 0;
    now.block_epoch++;
}

static bool same_place(const char *a, int at, const char *b, int line) { return at == line && (a == b || strcmp(a, b) == 0); }

void barrier(const char *file, int line)
{
    for (int i = 0; i < e.count; i++) {
        const thread *t = &e.threads[i];
        const uint3 at = index_of(i);
        if (t->state == AT_BARRIER && !same_place(t->file, t->line, file, line))
            fail("waits at the barrier at %s:%d while thread (%u, %u, %u) waits at the one at %s:%d", file, line, at.x, at.y, at.z, t->file,
                 t->line);
        if (t->state == DONE)
            fail("waits at the barrier at %s:%d, but thread (%u, %u, %u) has left the kernel", file, line, at.x, at.y, at.z);
    }
    if (++e.at_barrier == e.count) {
        release_barrier();
        return;
    }
    wait_as(AT_BARRIER, file, line);
}

/* Hands in `mine`, waits for the other lanes; returns the 32 slots. */
static const char (*meet(const void *mine, size_t bytes, unsigned mask, const char *file, int line))[SLOT_BYTES]
{
    warp *w = &e.warps[now.thread / WARP];
    const int first = now.thread / WARP * WARP, lane = now.thread % WARP;
    if (mask != 0xffffffffu || e.count % WARP != 0 || bytes > SLOT_BYTES)
        fail("a warp function at %s:%d with mask %#x in a block of %d threads: only whole warps are emulated", file, line, mask, e.count);
    if (w->arrived != 0 && !same_place(w->file, w->line, file, line))
        fail("is at the warp function at %s:%d while lanes %#x of its warp are at %s:%d", file, line, w->arrived, w->file, w->line);
    w->file = file, w->line = line;
    char(*slots)[SLOT_BYTES] = w->slot[w->calls % 2];
    memcpy(slots[lane], mine, bytes);
    w->arrived |= 1u << lane;
    if (w->arrived != 0xffffffffu) {
        wait_as(AT_WARP, file, line);
        return slots;
    }
    w->arrived = 0;
    w->calls++;
    now.warp_epoch[now.thread / WARP]++;
    for (int i = first; i < first + WARP; i++)
        e.threads[i].state = READY;
    return slots;
}

void exchange(void *all, const void *mine, size_t bytes, unsigned mask, const char *file, int line)
{
    const char(*slots)[SLOT_BYTES] = meet(mine, bytes, mask, file, line);
    for (int i = 0; i < WARP; i++)
        memcpy((char *)all + (size_t)i * bytes, slots[i], bytes);
}

uint64_t shuffle(unsigned mask, uint64_t mine, int from, const char *file, int line)
{
    uint64_t word;
    memcpy(&word, meet(&mine, sizeof mine, mask, file, line)[from], sizeof word);
    return word;
}

unsigned long long atomic_add(void *at, unsigned long long by)
{
    unsigned long long old, sum;
    touch(at, sizeof old, true, true);
    memcpy(&old, at, sizeof old);
    sum = old + by;
    memcpy(at, &sum, sizeof sum);
    return old;
}

unsigned long long atomic_min(void *at, unsigned long long with)
{
    unsigned long long old;
    touch(at, sizeof old, true, true);
    memcpy(&old, at, sizeof old);
    if (with < old)
        memcpy(at, &with, sizeof with);
    return old;
}

static int in_order(int i) { return e.backwards ? e.count - 1 - i : i; }

static int next_unbegun()
{
    for (int i = 0; i < e.count; i++)
        if (e.threads[in_order(i)].state == NOT_BEGUN)
            return in_order(i);
    return -1;
}

/* A fiber runs thread after thread as long as none of them waits: kernels without barriers cost no switch. */
static void fiber_main(int self)
{
    for (int t = e.fibers[self].thread; t >= 0; t = next_unbegun()) {
        now.thread = e.fibers[self].thread = t;
        e.threads[t].on = self;
        e.threads[t].state = READY;
        e.call(now.params);
        e.threads[t].state = DONE;
        if (e.at_barrier > 0)
            for (int i = 0; i < e.count; i++)
                if (e.threads[i].state == AT_BARRIER)
                    fail("leaves the kernel while other threads wait at the barrier at %s:%d", e.threads[i].file, e.threads[i].line);
    }
    e.fibers[self].thread = -1;
    setcontext(&e.scheduler);
}

static void begin_thread(int t)
{
    int f = 0;
    while (e.fibers[f].thread >= 0)
        f++;
    fiber *fresh = &e.fibers[f];
    fresh->thread = t;
    getcontext(&fresh->context);
    fresh->context.uc_stack.ss_sp = e.stacks + (size_t)f * STACK_BYTES;
    fresh->context.uc_stack.ss_size = STACK_BYTES;
    fresh->context.uc_link = nullptr;
    makecontext(&fresh->context, (void (*)())fiber_main, 1, f);
    swapcontext(&e.scheduler, &fresh->context);
}

static void nobody_can_run()
{
    for (int i = 0; i < e.count; i++)
        if (e.threads[i].state == AT_WARP || e.threads[i].state == AT_BARRIER) {
            const uint3 at = index_of(i);
            snprintf(e.text, sizeof e.text, "%s, block (%u, %u, %u), thread (%u, %u, %u): waits for ever at %s:%d", now.kernel, e.block_at.x,
                     e.block_at.y, e.block_at.z, at.x, at.y, at.z, e.threads[i].file, e.threads[i].line);
            e.failed = true;
            return;
        }
}

static void run_block()
{
    for (int i = 0; i < e.count; i++)
        e.threads[i] = {NOT_BEGUN, -1, nullptr, 0}, e.fibers[i].thread = -1;
    for (int i = 0; i < (e.count + WARP - 1) / WARP; i++)
        e.warps[i].arrived = 0, now.warp_epoch[i] = 1;
    e.at_barrier = 0;
    now.block_epoch = 1;
    now.serial++;
    for (bool ran = true; ran && !e.failed;) {
        ran = false;
        for (int i = 0; i < e.count && !e.failed; i++) {
            const int t = in_order(i);
            const thread_state state = e.threads[t].state;
            if (state != NOT_BEGUN && state != READY)
                continue;
            ran = true;
            now.thread = t;
            if (state == NOT_BEGUN)
                begin_thread(t);
            else
                swapcontext(&e.scheduler, &e.fibers[e.threads[t].on].context);
        }
    }
    if (!e.failed)
        nobody_can_run();
}

void launch_call(const char *kernel, dim3 grid, dim3 block, void (*call)(const void *), const void *params, size_t bytes)
{
    const unsigned blocks = grid.x * grid.y * grid.z, threads = block.x * block.y * block.z;
    if (e.failed) /* sticky, as on a GPU */
        return;
    if (blocks == 0 || threads == 0 || threads > THREADS_MOST || grid.y > 65535 || grid.z > 65535) {
        fail_on_host("a launch with an empty or too large grid or block");
        return;
    }
    if (e.stacks == nullptr)
        e.stacks = (char *)mmap(nullptr, (size_t)THREADS_MOST * STACK_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    now.kernel = kernel, now.params = (const char *)params, now.param_bytes = bytes;
    now.launch = now.serial + 1;
    e.call = call, e.grid = grid, e.block = block, e.count = (int)threads;
    e.backwards = !e.backwards;
    const unsigned mode = _mm_getcsr();
    _mm_setcsr(mode | 0x8040); /* -ftz=true: flush to zero, denormals are zero */
    now.in_kernel = true;
    for (unsigned i = 0; i < blocks && !e.failed; i++) {
        const unsigned b = e.backwards ? blocks - 1 - i : i;
        e.block_at = {b % grid.x, b / grid.x % grid.y, b / grid.x / grid.y};
        run_block();
    }
    now.in_kernel = false;
    _mm_setcsr(mode);
}
} // namespace emulation

static float bf16_at(const uint32_t *fragment, int i)
{
    const uint32_t bits = (fragment[i / 2] >> 16 * (i % 2)) << 16;
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

void emulated_mma_bf16(float d[4], const uint32_t a[4], const uint32_t b[2], const char *file, int line)
{
    const uint32_t mine[6] = {a[0], a[1], a[2], a[3], b[0], b[1]};
    uint32_t all[32][6];
    emulation::exchange(all, mine, sizeof mine, 0xffffffffu, file, line);
    const int lane = emulation::lane();
    for (int i = 0; i < 4; i++) {
        const int row = lane / 4 + 8 * (i / 2), column = lane % 4 * 2 + i % 2;
        for (int k = 0; k < 16; k++) {
            /* a: lane (row % 8) * 4 + (k % 8) / 2, register row / 8 + 2 (k / 8); b: lane column * 4 + (k % 8) / 2, register k / 8 */
            const float x = bf16_at(all[row % 8 * 4 + k % 8 / 2], 2 * (row / 8 + 2 * (k / 8)) + k % 2);
            const float y = bf16_at(all[column * 4 + k % 8 / 2] + 4, 2 * (k / 8) + k % 2);
            d[i] = __builtin_fmaf(x, y, d[i]);
        }
    }
}

void emulated_ldmatrix(uint32_t out[4], const void *row, bool transposed, const char *file, int line)
{
    const char *rows[32];
    emulation::touch(row, 16, false, false);
    if ((uintptr_t)row % 16 != 0)
        emulation::fail("ldmatrix at %s:%d: a row that is not aligned to 16 bytes", file, line);
    emulation::exchange(rows, &row, sizeof row, 0xffffffffu, file, line);
    const int lane = emulation::lane();
    for (int i = 0; i < 4; i++) {
        uint16_t pair[2];
        for (int j = 0; j < 2; j++) {
            const int r = transposed ? lane % 4 * 2 + j : lane / 4, c = transposed ? lane / 4 : lane % 4 * 2 + j;
            memcpy(&pair[j], rows[8 * i + r] + 2 * c, sizeof pair[j]);
        }
        memcpy(&out[i], pair, sizeof out[i]);
    }
}
