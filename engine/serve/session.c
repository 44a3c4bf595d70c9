#include "engine/serve/session.h"

#include <errno.h>
#include <limits.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "engine/train/run_model.h"
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

/* $XDG_CACHE_HOME/moe-serve/NAME.hot, NAME a hash of where the model is. "" where there is no such folder and none can be made. */
static void find_hot(char *out, size_t size, const char *model_path)
{
    const char *cache = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
    char dir[400], path[PATH_MAX];
    uint64_t h = 0xcbf29ce484222325u;
    out[0] = '\0';
    int n = -1;
    if (cache != NULL && cache[0] == '/')
        n = snprintf(dir, sizeof dir, "%s/moe-serve", cache);
    else if (home != NULL && home[0] == '/')
        n = snprintf(dir, sizeof dir, "%s/.cache/moe-serve", home);
    if (n < 0 || (size_t)n >= sizeof dir || realpath(model_path, path) == NULL)
        return;
    char *last = strrchr(dir, '/');
    *last = '\0';
    (void)mkdir(dir, 0700);
    *last = '/';
    if (mkdir(dir, 0700) != 0 && errno != EEXIST)
        return;
    for (const char *p = path; *p != '\0'; p++)
        h = (h ^ (unsigned char)*p) * 0x100000001b3u;
    snprintf(out, size, "%s/%016llx.hot", dir, (unsigned long long)h);
}

moe_err session_open(session *s, const session_options *o)
{
    moe_err rc;
    *s = (session){0};
    TRY_GOTO(find_kv(&s->config.kv, o->kv), rc, fail);
    TRY_GOTO(moe_backend_find(&s->config.be, o->backend), rc, fail);
    TRY_GOTO(run_model_open(&s->model, o->path), rc, fail);
    TRY_GOTO(io_open(&s->io, "auto", s->io_note), rc, fail);
    TRY_GOTO(moe_pool_open(&s->pool, o->threads > 0 ? o->threads : processors(), KERNEL_SCRATCH_BYTES), rc, fail);
    s->stream = (moe_stream){.pool = s->pool};
    snprintf(s->limit_source, sizeof s->limit_source, "--host-memory");
    s->config = (serve_config){
        .model = s->model, .be = s->config.be, .stream = &s->stream, .io = s->io, .kv = s->config.kv, .policy = o->policy,
        .host_bytes = o->host_bytes > 0 ? o->host_bytes : budget_detect_host(s->limit_source), .max_sequences = o->sequences,
        .max_context = o->context, .chunk = o->chunk,
    };
    if (o->hot)
        find_hot(s->hot, sizeof s->hot, o->path);
    return MOE_OK;
fail:
    session_close(s);
    return rc;
}

moe_err session_start(session *s)
{
    s->config.stream = &s->stream; /* the structure may have been moved since */
    s->config.hot = s->hot[0] != '\0' ? s->hot : NULL;
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
