/* The loop of continuous batching. Every step takes one token of each text that has one, then pieces of prompts while the chunk has room;
 * texts that wait begin as soon as a sequence is free. A prompt that is being computed for one text is waited for by its other texts,
 * which then take over its keys and values. */
#include "engine/serve/generator.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/base/clock.h"
#include "memory/budget.h"

typedef struct text_run {
    generated out;
    sampler *sampler;
    text_stream *stream;
    int sequence;      /* -1: none                                                   */
    int64_t fed;       /* tokens of prompt and text that the sequence has            */
} text_run;

struct generator {
    generator_options o;
    text_run *text; /* [n] */
    int n, running, next;
    serve_span *span; /* [max_running] of this step */
    int *owner;       /* [max_running] whose text a span is */
    float *logits;    /* [max_running, V] */
    sampler_room *room;
    generator_times times;
    bool prefill; /* this step has prompt tokens */
    double began;
};

const char *generate_finish_name(generate_finish f)
{
    static const char *const names[] = {"running", "eos", "stop", "length", "interrupted", "error"};
    return names[f];
}

static const token_ids *prompt_of(const generator *g, int i) { return &g->o.prompt[i / g->o.streams]; }

static moe_err check(const generator_options *o)
{
    if (o->nprompts < 1 || o->streams < 1 || o->nprompts > INT32_MAX / o->streams)
        return moe_fail(MOE_E_USAGE, "%d prompts, %d streams of each; expected at least one of both", o->nprompts, o->streams);
    if (o->max_tokens < 1 || o->chunk < 1 || o->max_running < 1 || o->chunk < o->max_running)
        return moe_fail(MOE_E_CONFIG, "%lld tokens of a text, %d of a step, %d sequences; expected at least 1 of each, and a token of a step for each sequence",
                        (long long)o->max_tokens, o->chunk, o->max_running);
    for (int p = 0; p < o->nprompts; p++) {
        if (o->prompt[p].n == 0)
            return moe_fail(MOE_E_USAGE, "prompt %d has no token; expected at least one", p + 1);
        for (size_t i = 0; i < o->prompt[p].n; i++)
            if (o->prompt[p].id[i] < 0 || o->prompt[p].id[i] >= o->V)
                return moe_fail(MOE_E_DATA, "prompt %d: token %d is not in the model's vocabulary of %d", p + 1, o->prompt[p].id[i], o->V);
    }
    return sampler_check(&o->sampling, o->V);
}

static bool is_only_special(const tokenizer *t, const token_ids *ids)
{
    size_t i = 0;
    while (i < ids->n && tokenizer_is_special(t, ids->id[i]))
        i++;
    return i == ids->n;
}

static moe_err open_text(generator *g, int i)
{
    text_run *t = &g->text[i];
    const generator_options *o = &g->o;
    const token_ids *p = prompt_of(g, i);
    const size_t most = (size_t)o->max_tokens;
    t->sequence = -1;
    TRY(sampler_open(&t->sampler, &o->sampling, o->V, (uint32_t)i, (int64_t)p->n + o->max_tokens));
    TRY(sampler_accept(t->sampler, p->id, (int64_t)p->n));
    const text_stream_options stream = {
        .tokenizer = o->tokenizer, .stop = o->stop, .nstop = o->nstop, .eos = o->eos, .neos = o->neos, .skip_special = o->skip_special,
        .begins = is_only_special(o->tokenizer, p),
    };
    TRY(text_stream_open(&t->stream, &stream));
    t->out.tokens.id = calloc(most, sizeof *t->out.tokens.id);
    t->out.tokens.capacity = most;
    if (o->sampling.logprobs > 0)
        t->out.sampled = calloc(most, sizeof *t->out.sampled);
    if (t->out.tokens.id == NULL || (o->sampling.logprobs > 0 && t->out.sampled == NULL))
        return moe_fail(MOE_E_OS, "no memory for a text of %zu tokens", most);
    return MOE_OK;
}

moe_err generator_open(generator **out, const generator_options *o)
{
    *out = NULL;
    TRY(check(o));
    generator *g = calloc(1, sizeof *g);
    if (g == NULL)
        return moe_fail(MOE_E_OS, "no memory for a generator");
    moe_err rc = MOE_OK;
    g->o = *o;
    g->n = o->nprompts * o->streams;
    if (g->o.max_running > g->n)
        g->o.max_running = g->n;
    g->text = calloc((size_t)g->n, sizeof *g->text);
    g->span = calloc((size_t)g->o.max_running, sizeof *g->span);
    g->owner = calloc((size_t)g->o.max_running, sizeof *g->owner);
    if (g->text == NULL || g->span == NULL || g->owner == NULL)
        TRY_GOTO(moe_fail(MOE_E_OS, "no memory for %d texts", g->n), rc, fail);
    TRY_GOTO(budget_alloc((void **)&g->logits, (size_t)g->o.max_running * (size_t)o->V * sizeof *g->logits, "logits"), rc, fail);
    TRY_GOTO(sampler_room_open(&g->room, o->V), rc, fail);
    for (int i = 0; i < g->n; i++)
        TRY_GOTO(open_text(g, i), rc, fail);
    *out = g;
    return MOE_OK;
fail:
    generator_close(g);
    return rc;
}

void generator_close(generator *g)
{
    if (g == NULL)
        return;
    for (int i = 0; g->text != NULL && i < g->n; i++) {
        text_run *t = &g->text[i];
        sampler_close(t->sampler);
        text_stream_close(t->stream);
        free(t->out.tokens.id);
        free(t->out.sampled);
        text_buffer_free(&t->out.text);
    }
    sampler_room_close(g->room);
    budget_free(g->logits);
    free(g->span);
    free(g->owner);
    free(g->text);
    free(g);
}

int generator_texts(const generator *g) { return g->n; }
const generated *generator_text(const generator *g, int i) { return &g->text[i].out; }
const generator_times *generator_get_times(const generator *g) { return &g->times; }

static moe_err add_text(generator *g, int i, const char *text, size_t n)
{
    if (n == 0)
        return MOE_OK;
    TRY(text_buffer_append(&g->text[i].out.text, text, n));
    if (g->o.emit != NULL)
        g->o.emit(g->o.user, i, text, n);
    return MOE_OK;
}

static moe_err finish(generator *g, serve *s, int i, generate_finish why)
{
    text_run *t = &g->text[i];
    const char *text;
    size_t n;
    TRY(text_stream_end(t->stream, &text, &n));
    TRY(add_text(g, i, text, n));
    t->out.finish = why;
    if (text_stream_finish(t->stream) == TEXT_STOP) { /* what waited was one */
        t->out.finish = GENERATE_STOP;
        t->out.stop = text_stream_stop(t->stream);
    }
    if (t->sequence >= 0) {
        serve_sequence_end(s, t->sequence);
        t->sequence = -1;
        g->running--;
    }
    return MOE_OK;
}

/* The error just made is that of this text alone. */
static moe_err finish_error(generator *g, serve *s, int i, moe_err rc, const char *text)
{
    generated *out = &g->text[i].out;
    out->rc = rc;
    snprintf(out->error, sizeof out->error, "%s", text);
    return finish(g, s, i, GENERATE_ERROR);
}

static bool is_prefilled(const generator *g, int i)
{
    return g->text[i].fed >= (int64_t)prompt_of(g, i)->n;
}

/* Another text computes the same prompt at this moment. */
static bool prompt_busy(const generator *g, int i)
{
    for (int k = i - i % g->o.streams; k < i; k++)
        if (g->text[k].sequence >= 0 && !is_prefilled(g, k))
            return true;
    return false;
}

static moe_err admit(generator *g, serve *s)
{
    while (g->next < g->n && g->running < g->o.max_running && !prompt_busy(g, g->next)) {
        text_run *t = &g->text[g->next];
        const token_ids *p = prompt_of(g, g->next);
        TRY(serve_sequence_begin(s, &t->sequence));
        g->next++;
        g->running++;
        t->fed = t->out.reused = serve_sequence_reuse(s, t->sequence, p->id, (int64_t)p->n);
    }
    return MOE_OK;
}

static void add_span(generator *g, int i, int *spans, int *room, const int32_t *token, int64_t left)
{
    const text_run *t = &g->text[i];
    const int n = left < *room ? (int)left : *room;
    g->span[*spans] = (serve_span){.sequence = t->sequence, .token = token, .n = n, .want = n == left ? SERVE_LAST : SERVE_NONE};
    g->owner[(*spans)++] = i;
    *room -= n;
}

/* Decoding texts first: each of them has room, a chunk holds a token for every sequence. */
static int plan_step(generator *g)
{
    int spans = 0, room = g->o.chunk;
    g->prefill = false;
    for (int pass = 0; pass < 2; pass++)
        for (int i = 0; i < g->next; i++) {
            const text_run *t = &g->text[i];
            if (t->sequence < 0 || room == 0 || is_prefilled(g, i) != (pass == 0))
                continue;
            const token_ids *p = prompt_of(g, i);
            if (pass == 0)
                add_span(g, i, &spans, &room, &t->out.tokens.id[t->out.tokens.n - 1], 1);
            else
                add_span(g, i, &spans, &room, p->id + t->fed, (int64_t)p->n - t->fed);
            g->prefill |= pass == 1;
        }
    return spans;
}

/* One row of logits becomes one token of the text. */
static moe_err take_row(generator *g, serve *s, int i, const float *logits)
{
    text_run *t = &g->text[i];
    generated *out = &t->out;
    sampler_result r;
    const char *text;
    size_t n;
    const moe_err rc = sampler_sample(t->sampler, g->room, logits, &r);
    if (rc != MOE_OK)
        return finish_error(g, s, i, rc, moe_error_text());
    TRY(sampler_accept(t->sampler, &r.token, 1));
    if (out->tokens.n == 0)
        out->first_seconds = moe_seconds() - g->began;
    if (out->sampled != NULL)
        out->sampled[out->tokens.n] = r;
    out->tokens.id[out->tokens.n++] = r.token;
    TRY(text_stream_push(t->stream, r.token, &text, &n));
    TRY(add_text(g, i, text, n));
    out->stop = text_stream_stop(t->stream);
    const text_finish end = text_stream_finish(t->stream);
    if (end != TEXT_RUNNING)
        return finish(g, s, i, end == TEXT_EOS ? GENERATE_EOS : GENERATE_STOP);
    return (int64_t)out->tokens.n == g->o.max_tokens ? finish(g, s, i, GENERATE_LENGTH) : MOE_OK;
}

/* What a step has computed: span by span, the rows of logits in the same order. */
static moe_err take_step(generator *g, serve *s, int spans)
{
    const float *logits = g->logits;
    for (int k = 0; k < spans; k++) {
        const serve_span *span = &g->span[k];
        const int i = g->owner[k];
        const float *row = logits;
        logits += span->want == SERVE_LAST ? g->o.V : 0;
        if (span->rc != MOE_OK) {
            TRY(finish_error(g, s, i, span->rc, span->text));
            continue;
        }
        g->text[i].fed += span->n;
        if (span->want == SERVE_LAST)
            TRY(take_row(g, s, i, row));
    }
    return MOE_OK;
}

static void count_step(generator *g, int spans, double seconds)
{
    generator_times *t = &g->times;
    int64_t tokens = 0;
    for (int k = 0; k < spans; k++)
        tokens += g->span[k].n;
    if (g->prefill) {
        t->prefill_seconds += seconds;
        t->prefill_steps++;
    } else {
        t->decode_seconds += seconds;
        t->decode_steps++;
        t->decoded += tokens;
    }
}

static bool interrupted(const generator *g) { return g->o.interrupted != NULL && *g->o.interrupted; }

moe_err generator_run(generator *g, serve *s)
{
    g->began = moe_seconds();
    for (int p = 0; p < g->o.nprompts; p++)
        g->times.prompt_tokens += (int64_t)g->o.prompt[p].n * g->o.streams;
    while (!interrupted(g)) {
        TRY(admit(g, s));
        if (g->running == 0)
            break;
        const int spans = plan_step(g);
        const double before = moe_seconds();
        TRY(serve_step(s, g->span, spans, g->logits));
        count_step(g, spans, moe_seconds() - before);
        TRY(take_step(g, s, spans));
    }
    for (int i = 0; i < g->n; i++)
        if (g->text[i].out.finish == GENERATE_RUNNING)
            TRY(finish(g, s, i, GENERATE_INTERRUPTED));
    g->times.seconds = moe_seconds() - g->began;
    return MOE_OK;
}
