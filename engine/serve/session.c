#include "engine/serve/session.h"

#include <sched.h>
#include <stdio.h>
#include <string.h>

#include "memory/budget.h"

static int processors(void)
{
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) != 0 || CPU_COUNT(&set) < 1)
        return 1;
    return CPU_COUNT(&set);
}

static moe_err find_kv(numfmt *out, const char *name)
{
    const int f = name == NULL ? NUM_BF16 : numfmt_find(name);
    *out = (numfmt)f;
    if (f == NUM_F32 || f == NUM_BF16 || f == NUM_Q8_0)
        return MOE_OK;
    return moe_fail(MOE_E_USAGE, "KV cache: expected f32, bf16 or q8_0, got \"%s\"", name);
}

moe_err session_open(session *s, const session_options *o)
{
    moe_err rc;
    *s = (session){0};
    TRY_GOTO(find_kv(&s->config.kv, o->kv), rc, fail);
    TRY_GOTO(moe_backend_find(&s->config.be, o->backend), rc, fail);
    TRY_GOTO(model_open(&s->model, o->path), rc, fail);
    TRY_GOTO(io_open(&s->io, "auto", s->io_note), rc, fail);
    TRY_GOTO(moe_pool_open(&s->pool, o->threads > 0 ? o->threads : processors(), KERNEL_SCRATCH_BYTES), rc, fail);
    s->stream = (moe_stream){s->pool};
    snprintf(s->limit_source, sizeof s->limit_source, "--host-memory");
    s->config = (serve_config){
        .model = s->model, .be = s->config.be, .stream = &s->stream, .io = s->io, .kv = s->config.kv, .policy = o->policy,
        .host_bytes = o->host_bytes > 0 ? o->host_bytes : budget_detect_host(s->limit_source), .max_sequences = o->sequences,
        .max_context = o->context, .chunk = o->chunk,
    };
    return MOE_OK;
fail:
    session_close(s);
    return rc;
}

moe_err session_start(session *s)
{
    s->config.stream = &s->stream; /* the structure may have been moved since */
    return serve_open(&s->serve, &s->config);
}

void session_close(session *s)
{
    serve_close(s->serve);
    moe_pool_close(s->pool);
    if (s->io != NULL)
        io_close(s->io);
    model_close(s->model);
    *s = (session){0};
}
