/* From words to tokens, the run, and what is printed of it. Owns the tokenizer, the prompts' tokens and the arrays that the sampler's
 * options point to. One thread; a signal only raises a flag. */
#include "engine/serve/generate.h"

#include <errno.h>
#include <jansson.h>
#include <math.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "engine/base/text.h"
#include "engine/serve/eos.h"
#include "engine/serve/generator.h"
#include "models/text/bpe.h"
#include "models/text/decode.h"

enum {
    GENERATE_CHUNK = 512,      /* tokens of a step */
    PROMPT_LIMIT = 64 << 20,   /* bytes of stdin   */
};

typedef struct job {
    const generate_options *o;
    session session;
    tokenizer *tokenizer;
    token_ids *prompt; /* [nprompts] */
    int nprompts;
    eos_set eos;
    sampler_bias *bias;
    int32_t *breaker;
    int nbreakers;
    generator *generator;
    FILE *out;
} job;

static volatile sig_atomic_t stop_signals;

/* The first signal ends the texts where they are; the second leaves at once. */
static void on_signal(int number)
{
    (void)number;
    if (++stop_signals > 1)
        _exit(MOE_E_TEMP);
}

static void catch_signals(void)
{
    struct sigaction a = {.sa_handler = on_signal};
    sigemptyset(&a.sa_mask);
    stop_signals = 0;
    sigaction(SIGTERM, &a, NULL);
    sigaction(SIGINT, &a, NULL);
}

/* --- prompts ------------------------------------------------------------------------------------------------------------------ */

static moe_err read_stdin(text_buffer *b)
{
    size_t n;
    do {
        TRY(text_buffer_reserve(b, 1 << 16));
        n = fread(b->data + b->n, 1, 1 << 16, stdin);
        b->n += n;
        if (b->n > PROMPT_LIMIT)
            return moe_fail(MOE_E_DATA, "stdin: a prompt of more than %d bytes", PROMPT_LIMIT);
    } while (n > 0);
    if (stop_signals > 0)
        return moe_fail(MOE_E_TEMP, "stopped by a signal");
    return ferror(stdin) ? moe_fail(MOE_E_IO, "stdin: cannot read: %s", strerror(errno)) : MOE_OK;
}

static moe_err add_token(token_ids *ids, int32_t id)
{
    TRY(token_ids_reserve(ids, 1));
    ids->id[ids->n++] = id;
    return MOE_OK;
}

static moe_err encode(job *j, const char *text, token_ids *ids)
{
    text_buffer b = {0};
    moe_err rc = MOE_OK;
    const bool from_stdin = strcmp(text, "-") == 0;
    if (tokenizer_bos(j->tokenizer) >= 0)
        TRY(add_token(ids, tokenizer_bos(j->tokenizer)));
    if (from_stdin)
        TRY_GOTO(read_stdin(&b), rc, done);
    TRY_GOTO(tokenizer_encode(j->tokenizer, from_stdin ? b.data : text, from_stdin ? b.n : strlen(text), j->o->prompt_specials, ids), rc, done);
done:
    text_buffer_free(&b);
    return rc;
}

/* "1,2,3" */
static moe_err parse_tokens(const char *text, token_ids *ids)
{
    for (const char *p = text;;) {
        char *end;
        errno = 0;
        const long id = strtol(p, &end, 10);
        if (end == p || errno != 0 || id < 0 || id > INT32_MAX || (*end != ',' && *end != '\0'))
            return moe_fail(MOE_E_USAGE, "--prompt-tokens: expected ids between commas, found \"%.40s\"", p);
        TRY(add_token(ids, (int32_t)id));
        if (*end == '\0')
            return MOE_OK;
        p = end + 1;
    }
}

static moe_err read_prompts(job *j)
{
    j->nprompts = j->o->prompt_tokens != NULL ? 1 : j->o->nprompts;
    if (j->nprompts == 0 || (j->o->prompt_tokens != NULL && j->o->nprompts > 0))
        return moe_fail(MOE_E_USAGE, "expected --prompt TEXT, --prompt - or --prompt-tokens IDS");
    j->prompt = calloc((size_t)j->nprompts, sizeof *j->prompt);
    if (j->prompt == NULL)
        return moe_fail(MOE_E_OS, "no memory for %d prompts", j->nprompts);
    if (j->o->prompt_tokens != NULL)
        return parse_tokens(j->o->prompt_tokens, &j->prompt[0]);
    for (int i = 0; i < j->nprompts; i++)
        TRY(encode(j, j->o->prompt[i], &j->prompt[i]));
    return MOE_OK;
}

/* --- what the sampler needs --------------------------------------------------------------------------------------------------- */

static moe_err read_bias(job *j)
{
    j->bias = calloc((size_t)j->o->nbias + 1, sizeof *j->bias);
    if (j->bias == NULL)
        return moe_fail(MOE_E_OS, "no memory for %d biases", j->o->nbias);
    for (int i = 0; i < j->o->nbias; i++) {
        const char *text = j->o->bias[i];
        char *end;
        const long id = strtol(text, &end, 10);
        double bias = -INFINITY;
        const bool forbids = *end == '=' && strcmp(end + 1, "-inf") == 0;
        if (end == text || id < 0 || id > INT32_MAX || *end != '=' || (!forbids && !text_parse_double(end + 1, &bias)))
            return moe_fail(MOE_E_USAGE, "--logit-bias: expected ID=BIAS (-inf forbids the token), found \"%.60s\"", text);
        j->bias[i] = (sampler_bias){(int32_t)id, (float)bias};
    }
    return MOE_OK;
}

static bool holds_breaker(const job *j, int32_t id)
{
    const char *piece;
    size_t n;
    if (tokenizer_piece(j->tokenizer, id, &piece, &n) != MOE_OK)
        return false;
    for (int i = 0; i < j->o->nbreakers; i++)
        if (n > 0 && memmem(piece, n, j->o->breaker[i], strlen(j->o->breaker[i])) != NULL)
            return true;
    return false;
}

static moe_err find_breakers(job *j, int V)
{
    if (j->o->sampling.dry_multiplier == 0)
        return MOE_OK;
    const int most = tokenizer_vocab(j->tokenizer) < V ? tokenizer_vocab(j->tokenizer) : V;
    j->breaker = calloc((size_t)most + 1, sizeof *j->breaker);
    if (j->breaker == NULL)
        return moe_fail(MOE_E_OS, "no memory for the breakers of DRY");
    for (int32_t id = 0; id < most; id++)
        if (holds_breaker(j, id))
            j->breaker[j->nbreakers++] = id;
    return MOE_OK;
}

/* --- the run ------------------------------------------------------------------------------------------------------------------ */

static void write_text(void *user, int i, const char *text, size_t n)
{
    FILE *out = user;
    (void)i;
    fwrite(text, 1, n, out); /* an error stays in the stream; the program reports it at its end */
    fflush(out);
}

static bool streams_out(const job *j) { return j->nprompts * j->o->streams == 1 && !j->o->json; }

/* Sizes from the prompts: context, sequences, chunk. */
static moe_err size_session(job *j)
{
    const model_spec *spec = model_spec_of(j->session.model);
    serve_config *c = &j->session.config;
    size_t longest = 0, total = 0;
    for (int i = 0; i < j->nprompts; i++) {
        longest = j->prompt[i].n > longest ? j->prompt[i].n : longest;
        total += j->prompt[i].n;
    }
    if ((int64_t)longest + j->o->max_tokens > spec->max_positions)
        return moe_fail(MOE_E_USAGE, "a prompt of %zu tokens and --max-tokens %lld; the model has %d positions", longest,
                        (long long)j->o->max_tokens, spec->max_positions);
    const int texts = j->nprompts * j->o->streams;
    c->max_context = (int64_t)longest + j->o->max_tokens;
    c->max_sequences = texts < j->o->parallel ? texts : j->o->parallel;
    c->chunk = c->chunk > 0 ? c->chunk : total < GENERATE_CHUNK ? (int)total : GENERATE_CHUNK;
    c->chunk = c->chunk < c->max_sequences ? c->max_sequences : c->chunk;
    return MOE_OK;
}

static moe_err open_job(job *j)
{
    session_options so = j->o->session;
    so.sequences = 1;
    TRY(session_open(&j->session, &so));
    const char *path = j->o->tokenizer != NULL ? j->o->tokenizer : model_tokenizer(j->session.model);
    const int V = model_spec_of(j->session.model)->V;
    if (path == NULL)
        return moe_fail(MOE_E_NOINPUT, "%s: no tokenizer; give one with --tokenizer FILE|bytes", j->o->session.path);
    TRY(tokenizer_open(&j->tokenizer, path));
    if (!j->o->ignore_eos)
        TRY(eos_find(&j->eos, model_tokenizer(j->session.model) != NULL ? model_tokenizer(j->session.model) : j->o->session.path,
                     model_config(j->session.model), j->tokenizer, V));
    TRY(read_prompts(j));
    TRY(size_session(j));
    TRY(read_bias(j));
    TRY(find_breakers(j, V));
    generator_options g = {
        .tokenizer = j->tokenizer, .V = V, .prompt = j->prompt, .nprompts = j->nprompts, .streams = j->o->streams,
        .max_tokens = j->o->max_tokens, .chunk = j->session.config.chunk, .max_running = j->session.config.max_sequences,
        .sampling = j->o->sampling, .stop = j->o->stop, .nstop = j->o->nstop, .eos = j->eos.token, .neos = j->eos.n,
        .skip_special = !j->o->show_specials, .interrupted = &stop_signals,
    };
    g.sampling.bias = j->bias;
    g.sampling.nbias = j->o->nbias;
    g.sampling.breaker = j->breaker;
    g.sampling.nbreaker = j->nbreakers;
    if (streams_out(j)) {
        g.emit = write_text;
        g.user = j->out;
    }
    TRY(generator_open(&j->generator, &g));
    return session_start(&j->session);
}

static void close_job(job *j)
{
    generator_close(j->generator);
    session_close(&j->session);
    tokenizer_close(j->tokenizer);
    for (int i = 0; j->prompt != NULL && i < j->nprompts; i++)
        free(j->prompt[i].id);
    free(j->prompt);
    free(j->bias);
    free(j->breaker);
}

/* --- what is printed ---------------------------------------------------------------------------------------------------------- */

/* Any bytes: what is no UTF-8 becomes U+FFFD. */
static json_t *json_of_bytes(const char *s)
{
    text_buffer b = {0};
    json_t *o = decode_append_lossy(&b, s, strlen(s)) == MOE_OK ? json_stringn(b.n > 0 ? b.data : "", b.n) : NULL;
    text_buffer_free(&b);
    return o;
}

static json_t *json_logprobs(const generated *t)
{
    json_t *all = json_array();
    for (size_t i = 0; i < t->tokens.n; i++) {
        json_t *top = json_array();
        for (int k = 0; k < t->sampled[i].ntop; k++)
            json_array_append_new(top, json_pack("{s:i, s:f}", "token", t->sampled[i].top[k].token, "logprob", (double)t->sampled[i].top[k].logprob));
        json_array_append_new(all, json_pack("{s:i, s:f, s:o}", "token", t->sampled[i].token, "logprob", (double)t->sampled[i].logprob, "top", top));
    }
    return all;
}

static json_t *json_of_text(const job *j, int i)
{
    const generated *t = generator_text(j->generator, i);
    json_t *tokens = json_array();
    for (size_t k = 0; k < t->tokens.n; k++)
        json_array_append_new(tokens, json_integer(t->tokens.id[k]));
    json_t *o = json_pack("{s:i, s:i, s:o, s:o, s:s, s:I, s:I, s:f}", "prompt", i / j->o->streams, "stream", i % j->o->streams, "text",
                          json_stringn(t->text.n ? t->text.data : "", t->text.n), "tokens", tokens, "finish_reason",
                          generate_finish_name(t->finish), "prompt_tokens", (json_int_t)j->prompt[i / j->o->streams].n, "reused_tokens",
                          (json_int_t)t->reused, "first_token_seconds", t->first_seconds);
    if (t->stop != NULL)
        json_object_set_new(o, "stop", json_string(t->stop));
    if (t->finish == GENERATE_ERROR)
        json_object_set_new(o, "error", json_of_bytes(t->error));
    if (t->sampled != NULL)
        json_object_set_new(o, "logprobs", json_logprobs(t));
    return o;
}

static moe_err print_json(const job *j, FILE *out)
{
    const generator_times *t = generator_get_times(j->generator);
    serve_stats s;
    serve_get_stats(j->session.serve, &s);
    json_t *texts = json_array();
    for (int i = 0; i < generator_texts(j->generator); i++)
        json_array_append_new(texts, json_of_text(j, i));
    json_t *root = json_pack("{s:o, s:o, s:{s:f, s:f, s:f, s:f, s:I, s:I, s:I}, s:{s:I, s:I, s:I, s:I, s:f, s:i}}", "model", json_of_bytes(j->o->session.path),
                             "texts", texts, "timings", "open_seconds", s.open_seconds, "seconds", t->seconds, "prefill_seconds",
                             t->prefill_seconds, "decode_seconds", t->decode_seconds, "prompt_tokens", (json_int_t)t->prompt_tokens, "decoded_tokens",
                             (json_int_t)t->decoded, "decode_steps", (json_int_t)t->decode_steps, "experts", "accesses",
                             (json_int_t)s.cache.accesses, "hits", (json_int_t)s.cache.hits, "reads", (json_int_t)s.cache.reads, "read_bytes",
                             (json_int_t)s.cache.read_bytes, "stall_seconds", s.cache.stall_seconds, "slots", s.cache.slots);
    if (root == NULL)
        return moe_fail(MOE_E_OS, "no memory for the JSON of the texts");
    json_dumpf(root, out, JSON_INDENT(2) | JSON_REAL_PRECISION(9));
    fputc('\n', out);
    json_decref(root);
    return MOE_OK;
}

static void print_texts(const job *j, FILE *out)
{
    for (int i = 0; i < generator_texts(j->generator); i++) {
        const generated *t = generator_text(j->generator, i);
        fprintf(out, "=== prompt %d, stream %d: %s\n", i / j->o->streams + 1, i % j->o->streams + 1, generate_finish_name(t->finish));
        fwrite(t->text.n ? t->text.data : "", 1, t->text.n, out);
        fputc('\n', out);
    }
}

static void print_figures(const job *j, FILE *note)
{
    const generator_times *t = generator_get_times(j->generator);
    serve_stats s;
    serve_get_stats(j->session.serve, &s);
    fprintf(note, "%lld prompt tokens, %.1f s to the first tokens", (long long)t->prompt_tokens, t->prefill_seconds);
    if (t->decoded > 0 && t->decode_seconds > 0)
        fprintf(note, "; %lld tokens decoded, %.1f tok/s", (long long)t->decoded, (double)t->decoded / t->decode_seconds);
    if (s.cache.accesses > 0)
        fprintf(note, "; experts %.1f %% hits, waited %.1f s", 100.0 * (double)s.cache.hits / (double)s.cache.accesses, s.cache.stall_seconds);
    fputc('\n', note);
}

/* How things were opened, where not as usual. */
static void print_notes(const session *s, FILE *note)
{
    const char *const text[] = {model_note(s->model), s->io_note};
    for (int i = 0; i < 2; i++)
        if (text[i][0] != '\0')
            fprintf(note, "%s\n", text[i]);
}

static moe_err print(const job *j, FILE *out, FILE *note)
{
    if (j->o->json)
        TRY(print_json(j, out));
    else if (!streams_out(j))
        print_texts(j, out);
    else
        fputc('\n', out);
    fflush(out); /* the text stands before what is said of it, wherever both go */
    if (!j->o->quiet)
        print_figures(j, note);
    for (int i = 0; i < generator_texts(j->generator); i++) {
        const generated *t = generator_text(j->generator, i);
        if (t->finish == GENERATE_ERROR)
            return moe_error_set(t->rc, t->error);
    }
    return stop_signals > 0 ? moe_fail(MOE_E_TEMP, "stopped by a signal") : MOE_OK;
}

moe_err command_generate(const generate_options *o, FILE *out, FILE *note)
{
    job j = {.o = o, .out = out};
    moe_err rc;
    catch_signals();
    TRY_GOTO(open_job(&j), rc, done);
    if (!o->quiet)
        print_notes(&j.session, note);
    TRY_GOTO(generator_run(j.generator, j.session.serve), rc, done);
    rc = print(&j, out, note);
done:
    close_job(&j);
    return rc;
}
