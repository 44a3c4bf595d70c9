/* moe-train sample: the run folder opened as a model, the prompt, and what the serving engine makes of it. Owns the way from the command's words to
 * engine/serve. One thread.
 * Rule: keys and values are fp32, so that the most likely token is that of the training decoder; memory, threads and kernels are the run's unless said
 * otherwise. */
#include <stdlib.h>
#include <string.h>

#include "engine/serve/generator.h"
#include "engine/serve/session.h"
#include "engine/train/commands.h"
#include "models/text/tokenizer.h"

enum { CHUNK = 512 /* tokens of a step of the prompt */ };

typedef struct sampling {
    train_config *config;
    session session;
    tokenizer *tokenizer;
    token_ids prompt;
    int32_t eos;
    generator *generator;
} sampling;

static moe_err load_config(train_config **c, const char *run_dir, const char *const *sets, int nsets)
{
    char *path;
    if (asprintf(&path, "%s/config.yaml", run_dir) < 0)
        return moe_fail(MOE_E_OS, "out of memory");
    const moe_err rc = train_config_load(c, path, sets, nsets);
    free(path);
    return rc;
}

static moe_err read_prompt(sampling *s, const char *text, int64_t tokens)
{
    const int V = model_spec_of(s->session.model)->V, positions = model_spec_of(s->session.model)->max_positions;
    TRY(tokenizer_open(&s->tokenizer, s->config->data_path));
    TRY(tokenizer_encode(s->tokenizer, text, strlen(text), false, &s->prompt));
    if (s->prompt.n == 0)
        return moe_fail(MOE_E_USAGE, "--prompt: expected at least one token of text");
    for (size_t i = 0; i < s->prompt.n; i++)
        if (s->prompt.id[i] >= V)
            return moe_fail(MOE_E_DATA, "--prompt: token %d is not in the model's vocabulary of %d", s->prompt.id[i], V);
    if ((int64_t)s->prompt.n + tokens > positions)
        return moe_fail(MOE_E_USAGE, "a prompt of %zu tokens and --tokens %lld; the model has %d positions", s->prompt.n, (long long)tokens, positions);
    s->eos = tokenizer_eos(s->tokenizer);
    return MOE_OK;
}

static void write_text(void *user, int i, const char *text, size_t n)
{
    (void)i;
    fwrite(text, 1, n, user); /* an error stays in the stream; command_sample looks at its end */
    fflush(user);
}

static moe_err open_generator(sampling *s, const sample_options *o, FILE *out)
{
    serve_config *c = &s->session.config;
    c->max_context = (int64_t)s->prompt.n + o->tokens;
    c->chunk = s->prompt.n < CHUNK ? (int)s->prompt.n : CHUNK;
    generator_options g = {
        .tokenizer = s->tokenizer, .V = model_spec_of(s->session.model)->V, .prompt = &s->prompt, .nprompts = 1, .streams = 1, .max_tokens = o->tokens,
        .chunk = c->chunk, .max_running = 1, .sampling = sampler_defaults(), .eos = &s->eos, .neos = s->eos >= 0, .emit = write_text, .user = out,
    };
    g.sampling.temperature = o->temperature;
    g.sampling.top_k = o->top_k;
    g.sampling.top_p = 1;
    g.sampling.min_p = 0;
    g.sampling.seed = o->seed;
    return generator_open(&s->generator, &g);
}

static moe_err write_sample(sampling *s, const sample_options *o, FILE *out)
{
    TRY(session_start(&s->session));
    write_text(out, 0, o->prompt, strlen(o->prompt));
    TRY(generator_run(s->generator, s->session.serve));
    fputc('\n', out);
    if (fflush(out) != 0 || ferror(out))
        return moe_fail(MOE_E_IO, "cannot write the sample");
    const generated *text = generator_text(s->generator, 0);
    return text->finish == GENERATE_ERROR ? moe_error_set(text->rc, text->error) : MOE_OK;
}

moe_err command_sample(const char *run_dir, const char *const *sets, int nsets, const sample_options *o, FILE *out)
{
    sampling s = {0};
    moe_err rc;
    TRY(load_config(&s.config, run_dir, sets, nsets));
    const session_options so = {.path = run_dir, .host_bytes = s.config->host_bytes, .threads = s.config->threads, .backend = s.config->backend, .kv = "f32",
                                .sequences = 1};
    TRY_GOTO(session_open(&s.session, &so), rc, done);
    TRY_GOTO(read_prompt(&s, o->prompt, o->tokens), rc, done);
    TRY_GOTO(open_generator(&s, o, out), rc, done);
    rc = write_sample(&s, o, out);
done:
    generator_close(s.generator);
    session_close(&s.session);
    tokenizer_close(s.tokenizer);
    free(s.prompt.id);
    train_config_free(s.config);
    return rc;
}
