/* moe-serve bench: pseudo-random prompts, greedy continuation, wall clock. Every figure is measured here; one that is not is not printed. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "engine/base/clock.h"
#include "engine/base/text.h"
#include "engine/serve/commands.h"
#include "memory/budget.h"

enum {
    BENCH_PROMPT = 64,       /* tokens before the first that is decoded */
    BENCH_WARMUP = 0xffffff, /* number of the prompt that warms up      */
};

/* What happened between two looks at the engine. */
typedef struct phase {
    int streams;
    int64_t tokens;
    double seconds;
    expert_cache_stats cache;
} phase;

typedef struct bench {
    const bench_options *o;
    session s;
    int V, streams; /* the most */
    float *logits;  /* [streams, V] */
    int32_t *token; /* [prefill or prompt] */
    serve_span *span;
    int32_t *next; /* [streams] */
    serve_stats opened;
    phase prefill, decode[BENCH_STREAMS];
} bench;

static int32_t random_token(const bench *b, uint64_t prompt, uint64_t i)
{
    uint64_t x = ((b->o->seed << 48 | prompt << 24 | i) + 1) * 0x9e3779b97f4a7c15u; /* splitmix64 */
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
    x = (x ^ x >> 27) * 0x94d049bb133111ebu;
    return (int32_t)((x ^ x >> 31) % (uint64_t)b->V);
}

static int32_t largest(const float *logits, int V)
{
    int32_t best = 0;
    for (int32_t v = 1; v < V; v++)
        if (logits[v] > logits[best])
            best = v;
    return best;
}

static expert_cache_stats cache_now(const bench *b)
{
    serve_stats s;
    serve_get_stats(b->s.serve, &s);
    return s.cache;
}

static void phase_end(const bench *b, phase *p, double began, const expert_cache_stats *before)
{
    const expert_cache_stats now = cache_now(b);
    p->seconds = moe_seconds() - began;
    p->cache = (expert_cache_stats){
        .accesses = now.accesses - before->accesses, .hits = now.hits - before->hits, .reads = now.reads - before->reads,
        .read_bytes = now.read_bytes - before->read_bytes, .ahead_reads = now.ahead_reads - before->ahead_reads,
        .wasted_bytes = now.wasted_bytes - before->wasted_bytes, .stall_seconds = now.stall_seconds - before->stall_seconds, .slots = now.slots,
    };
}

static moe_err step(bench *b, int spans)
{
    TRY(serve_step(b->s.serve, b->span, spans, b->logits));
    for (int i = 0; i < spans; i++)
        if (b->span[i].rc != MOE_OK)
            return moe_error_set(b->span[i].rc, b->span[i].text);
    return MOE_OK;
}

/* n tokens of one sequence in steps of a chunk; its next token goes to *next. */
static moe_err feed(bench *b, int sequence, int64_t n, uint64_t prompt, int32_t *next)
{
    const int chunk = b->s.config.chunk;
    for (int64_t at = 0; at < n; at += chunk) {
        const int64_t left = n - at;
        b->span[0] = (serve_span){.sequence = sequence, .token = b->token, .n = left < chunk ? (int)left : chunk,
                                  .want = left <= chunk ? SERVE_LAST : SERVE_NONE};
        for (int i = 0; i < b->span[0].n; i++)
            b->token[i] = random_token(b, prompt, (uint64_t)(at + i));
        TRY(step(b, 1));
    }
    *next = largest(b->logits, b->V);
    return MOE_OK;
}

static moe_err run_prefill(bench *b, phase *p, int64_t n, uint64_t prompt)
{
    int sequence;
    int32_t next;
    const expert_cache_stats before = cache_now(b);
    const double began = moe_seconds();
    p->streams = 1;
    p->tokens = n;
    TRY(serve_sequence_begin(b->s.serve, &sequence));
    TRY(feed(b, sequence, n, prompt, &next));
    phase_end(b, p, began, &before);
    serve_sequence_end(b->s.serve, sequence);
    return MOE_OK;
}

static moe_err run_decode(bench *b, phase *p, int streams)
{
    int sequence[BENCH_CHUNK];
    p->streams = streams;
    for (int i = 0; i < streams; i++) {
        TRY(serve_sequence_begin(b->s.serve, &sequence[i]));
        TRY(feed(b, sequence[i], BENCH_PROMPT, (uint64_t)streams << 8 | (uint64_t)i, &b->next[i]));
    }
    const expert_cache_stats before = cache_now(b);
    const double began = moe_seconds();
    for (int64_t n = 0; n < b->o->decode; n++) {
        for (int i = 0; i < streams; i++)
            b->span[i] = (serve_span){.sequence = sequence[i], .token = &b->next[i], .n = 1, .want = SERVE_LAST};
        TRY(step(b, streams));
        for (int i = 0; i < streams; i++)
            b->next[i] = largest(b->logits + (size_t)i * (size_t)b->V, b->V);
    }
    p->tokens = b->o->decode * streams;
    phase_end(b, p, began, &before);
    for (int i = 0; i < streams; i++)
        serve_sequence_end(b->s.serve, sequence[i]);
    return MOE_OK;
}

static void print_json_phase(FILE *out, const phase *p)
{
    const expert_cache_stats *c = &p->cache;
    char rate[TEXT_NUMBER], seconds[TEXT_NUMBER], stall[TEXT_NUMBER], hits[TEXT_NUMBER], each[TEXT_NUMBER], speed[TEXT_NUMBER];
    fprintf(out, "{\"streams\": %d, \"tokens\": %lld, \"seconds\": %s, \"tokens_per_second\": %s", p->streams, (long long)p->tokens,
            text_double(seconds, p->seconds), text_double(rate, (double)p->tokens / p->seconds));
    if (c->accesses > 0)
        fprintf(out, ", \"hit_rate\": %s, \"bytes_per_token\": %s, \"read_gb_per_second\": %s, \"stall_seconds\": %s, \"reads\": %llu, "
                     "\"ahead_reads\": %llu, \"wasted_bytes\": %llu",
                text_double(hits, (double)c->hits / (double)c->accesses), text_double(each, (double)c->read_bytes / (double)p->tokens),
                text_double(speed, (double)c->read_bytes / p->seconds / 1e9), text_double(stall, c->stall_seconds), (unsigned long long)c->reads,
                (unsigned long long)c->ahead_reads, (unsigned long long)c->wasted_bytes);
    fprintf(out, "}");
}

static void print_json(const bench *b, FILE *out)
{
    char ready[TEXT_NUMBER];
    fprintf(out, "{\"model\": \"%s\", \"backend\": \"%s\", \"threads\": %d, \"host_bytes\": %llu, \"ready_seconds\": %s, \"dense_bytes\": %llu, "
                 "\"kv_bytes\": %llu, \"slots\": %d, \"experts\": %d, \"peak_rss_bytes\": %llu",
            model_spec_of(b->s.model)->model_type, b->s.config.be->name, moe_pool_threads(b->s.pool), (unsigned long long)b->s.config.host_bytes,
            text_double(ready, b->opened.open_seconds), (unsigned long long)b->opened.dense_bytes, (unsigned long long)b->opened.kv_bytes,
            b->opened.cache.slots, spec_moe_layers(model_spec_of(b->s.model)) * model_spec_of(b->s.model)->E, (unsigned long long)budget_peak_rss());
    if (b->o->prefill > 0) {
        fprintf(out, ", \"prefill\": ");
        print_json_phase(out, &b->prefill);
    }
    fprintf(out, ", \"decode\": [");
    for (int i = 0; i < b->o->nstreams && b->o->decode > 0; i++) {
        fprintf(out, i > 0 ? ", " : "");
        print_json_phase(out, &b->decode[i]);
    }
    fprintf(out, "]}\n");
}

static void print_phase(FILE *out, const char *name, const phase *p)
{
    const expert_cache_stats *c = &p->cache;
    char each[TEXT_NUMBER], stall[TEXT_NUMBER];
    fprintf(out, "%-8s %4d %8lld %10.2f", name, p->streams, (long long)p->tokens, (double)p->tokens / p->seconds);
    if (c->accesses > 0)
        fprintf(out, " %9.1f %% %12s %8.2f %9s", 100.0 * (double)c->hits / (double)c->accesses,
                text_bytes(each, (double)c->read_bytes / (double)p->tokens), (double)c->read_bytes / p->seconds / 1e9,
                text_seconds(stall, c->stall_seconds));
    fprintf(out, "\n");
}

static void print_table(const bench *b, FILE *out)
{
    char limit[TEXT_NUMBER], dense[TEXT_NUMBER], ready[TEXT_NUMBER], peak[TEXT_NUMBER];
    const model_spec *m = model_spec_of(b->s.model);
    fprintf(out, "%s on %s, %d threads, %s of host memory: ready after %s, dense weights %s, %d of %d experts have room\n", m->model_type,
            b->s.config.be->name, moe_pool_threads(b->s.pool), text_bytes(limit, (double)b->s.config.host_bytes),
            text_seconds(ready, b->opened.open_seconds), text_bytes(dense, (double)b->opened.dense_bytes), b->opened.cache.slots,
            spec_moe_layers(m) * m->E);
    const char *const note[] = {model_note(b->s.model), b->s.io_note};
    for (int i = 0; i < 2; i++)
        if (note[i][0] != '\0')
            fprintf(out, "%s\n", note[i]);
    fprintf(out, "%-8s %4s %8s %10s %11s %12s %8s %9s\n", "", "x", "tokens", "tok/s", "hits", "read/token", "GB/s", "stalled");
    if (b->o->prefill > 0)
        print_phase(out, "prefill", &b->prefill);
    for (int i = 0; i < b->o->nstreams && b->o->decode > 0; i++)
        print_phase(out, "decode", &b->decode[i]);
    fprintf(out, "peak memory %s\n", text_bytes(peak, (double)budget_peak_rss()));
}

static moe_err check(const bench_options *o, int *most)
{
    *most = 1;
    const struct {
        const char *name;
        int64_t n;
    } tokens[] = {{"warmup", o->warmup}, {"prefill", o->prefill}, {"decode", o->decode}};
    for (int i = 0; i < 3; i++)
        if (tokens[i].n < 0 || tokens[i].n > 1 << 24)
            return moe_fail(MOE_E_USAGE, "bench: --%s %lld: expected 0 to %d tokens", tokens[i].name, (long long)tokens[i].n, 1 << 24);
    for (int i = 0; i < o->nstreams; i++) {
        if (o->streams[i] < 1 || o->streams[i] > BENCH_CHUNK)
            return moe_fail(MOE_E_USAGE, "bench: %d streams; expected 1 to %d", o->streams[i], (int)BENCH_CHUNK);
        *most = o->streams[i] > *most ? o->streams[i] : *most;
    }
    return MOE_OK;
}

static moe_err check_positions(const bench_options *o, const model_spec *m)
{
    const struct {
        const char *name;
        int64_t n;
    } text[] = {{"--warmup", o->warmup}, {"--prefill", o->prefill}, {"--decode (behind a prompt of 64)", o->decode + BENCH_PROMPT}};
    for (int i = 0; i < 3; i++)
        if (text[i].n > m->max_positions && (i < 2 || o->decode > 0))
            return moe_fail(MOE_E_USAGE, "bench: %s makes %lld tokens; the model has %d positions", text[i].name, (long long)text[i].n, m->max_positions);
    return MOE_OK;
}

static moe_err run(bench *b)
{
    phase unmeasured;
    if (b->o->warmup > 0)
        TRY(run_prefill(b, &unmeasured, b->o->warmup, BENCH_WARMUP));
    if (b->o->prefill > 0)
        TRY(run_prefill(b, &b->prefill, b->o->prefill, 0));
    for (int i = 0; i < b->o->nstreams && b->o->decode > 0; i++)
        TRY(run_decode(b, &b->decode[i], b->o->streams[i]));
    return MOE_OK;
}

moe_err command_bench(const bench_options *o, FILE *out)
{
    bench b = {.o = o};
    session_options so = o->session;
    void *logits = NULL;
    moe_err rc;
    TRY(check(o, &b.streams));
    const int64_t decoded = BENCH_PROMPT + o->decode;
    so.sequences = b.streams;
    so.context = o->prefill > decoded ? o->prefill : decoded;
    so.context = o->warmup > so.context ? o->warmup : so.context;
    so.chunk = so.context < BENCH_CHUNK ? (int)so.context : BENCH_CHUNK;
    so.chunk = b.streams > so.chunk ? b.streams : so.chunk;
    TRY(session_open(&b.s, &so));
    TRY_GOTO(check_positions(o, model_spec_of(b.s.model)), rc, done);
    b.V = model_spec_of(b.s.model)->V;
    b.token = calloc((size_t)so.chunk, sizeof *b.token);
    b.span = calloc((size_t)b.streams, sizeof *b.span);
    b.next = calloc((size_t)b.streams, sizeof *b.next);
    if (b.token == NULL || b.span == NULL || b.next == NULL)
        TRY_GOTO(moe_fail(MOE_E_OS, "bench: out of memory"), rc, done);
    TRY_GOTO(budget_alloc(&logits, (size_t)b.streams * (size_t)b.V * sizeof(float), "logits"), rc, done);
    b.logits = logits;
    TRY_GOTO(session_start(&b.s), rc, done);
    serve_get_stats(b.s.serve, &b.opened);
    TRY_GOTO(run(&b), rc, done);
    if (o->json)
        print_json(&b, out);
    else
        print_table(&b, out);
done:
    budget_free(logits);
    free(b.token), free(b.span), free(b.next);
    session_close(&b.s);
    return rc;
}
