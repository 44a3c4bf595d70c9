/* The inside of the simulated device, shared by device_sim.c (the table, queues), device_sim_run.c (streams moving on) and device_sim_shadow.c
 * (what is known of every cell of memory). Rule: everything is guarded by sim.lock; only the bytes of a running copy or kernel are touched
 * without it, as a device would. */
#ifndef MOE_MEMORY_DEVICE_SIM_PRIVATE_H
#define MOE_MEMORY_DEVICE_SIM_PRIVATE_H

#include <pthread.h>

#include "memory/device_sim.h"

enum { SIM_HOST = DEVICE_STREAMS, SIM_ACTORS, SIM_TEXT = 512 };

/* How far an actor knows the others to have come. */
typedef struct sim_clock {
    uint64_t at[SIM_ACTORS];
} sim_clock;

/* What is known of DEVICE_ALIGN bytes. */
typedef struct sim_cell {
    uint64_t written, read[SIM_ACTORS]; /* times of actors; written: by `writer` */
    uint8_t writer;
    bool valid; /* something was written that has not been forgotten */
} sim_cell;

typedef struct sim_block {
    char *base;
    size_t bytes; /* a multiple of DEVICE_ALIGN */
    sim_cell *cell;
    struct sim_block *next;
} sim_block;

struct device_event {
    uint64_t recorded, done; /* numbers of its records */
    sim_clock clock;         /* of the last one that is done */
};

typedef enum sim_kind { SIM_COPY, SIM_LAUNCH, SIM_RECORD, SIM_WAIT, SIM_FORGET } sim_kind;

typedef struct sim_op {
    sim_kind kind;
    bool begun;
    sim_clock host;       /* what the caller knew when it queued this */
    uint64_t struck;      /* 1 + device_sim_fault, 0: none            */
    char *dst;            /* COPY, FORGET */
    const char *src;
    size_t bytes, copied;
    moe_err (*fn)(void *native, const void *args); /* LAUNCH */
    _Alignas(16) char args[DEVICE_ARGS];
    device_range touch[DEVICE_TOUCH];
    int ntouch;
    device_event *event;  /* RECORD, WAIT: its record `number` */
    uint64_t number;
    bool ready;           /* WAIT: that record is done, at `clock` */
    sim_clock clock;
    struct sim_op *next;
} sim_op;

typedef struct sim_stream {
    struct sim *sim;
    sim_op *head, **tail;
    sim_clock clock;
    bool hung;
    uint64_t queued; /* copies and launches so far */
    uint32_t speed;  /* steps: its share of them   */
    uint64_t random; /* threads: of its pauses     */
    pthread_t thread;
    bool started;
} sim_stream;

typedef struct sim {
    device base;
    bool threads, closing;
    int running; /* copies and kernels that are at work without the lock */
    pthread_mutex_t lock;
    pthread_cond_t moved; /* something was queued, done, or failed */
    sim_stream stream[DEVICE_STREAMS];
    sim_clock host;
    uint64_t random;
    sim_block *block;
    bool strikes; /* a fault waits for copy or launch strike_at of strike_on */
    device_stream strike_on;
    uint64_t strike_at;
    device_sim_fault strike;
    moe_err broken; /* the first failure, of stream `failed` (SIM_HOST: of none) */
    int failed;
    char text[SIM_TEXT];
    device_sim_stats stats;
} sim;

/* device_sim_shadow.c: MOE_E_NUMERIC with the sentence when the access is not in order. Then it counts as done by stream s, now. */
sim_block *sim_block_of(const sim *d, const void *p);
moe_err sim_access(sim *d, device_stream s, const device_range *r) MOE_MUST_CHECK;
void sim_mark_forgotten(sim *d, const void *p, size_t bytes);
void sim_clock_join(sim_clock *to, const sim_clock *from);

/* device_sim_run.c */
uint32_t sim_draw(uint64_t *random, uint32_t n);
void sim_break(sim *d, int actor, moe_err rc, const char *text);
/* The first failure, once nothing is at work any more: the caller may free what was touched. */
moe_err sim_failure(sim *d);
/* The stream moves on by one step; false when it cannot. */
bool sim_step(sim *d, device_stream s);
/* steps: some stream moves on; false when none can. */
bool sim_step_any(sim *d);
void *sim_thread(void *stream);

#endif
