/* Every family's logits and greedy text against transformers (tests/fixtures/serve), with fp32 pages; packed it has the same bits. */
#include <criterion/criterion.h>
#include <criterion/parameterized.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "models/formats/packed.h"
#include "tests/engine/serve_harness.h"
#include "tests/fixtures/serve_fixture.h"

static const double LIMIT = 1e-4; /* of the logit scale: the parity the project promises */

ParameterizedTestParameters(serve_fixtures, equals_transformers)
{
    static char names[32][64];
    int n = 0;
    for (; serve_fixture_names[n] != NULL; n++)
        snprintf(names[n], sizeof names[n], "%s", serve_fixture_names[n]);
    return cr_make_param_array(char[64], names, (size_t)n);
}

static double distance(const float *got, const serve_fixture *f)
{
    double worst = 0;
    for (size_t i = 0; i < (size_t)f->prompt_tokens * (size_t)f->V; i++) {
        const double d = fabs((double)got[i] - (double)f->logits[i]);
        worst = d > worst || isnan(d) ? d : worst;
    }
    return worst;
}

static int32_t largest(const float *logits, int V)
{
    int32_t best = 0;
    for (int32_t v = 1; v < V; v++)
        if (logits[v] > logits[best])
            best = v;
    return best;
}

static void compare_greedy(test_serve *t, const serve_fixture *f, const char *name)
{
    float *logits = malloc((size_t)t->V * sizeof *logits);
    int sequence;
    MUST(serve_sequence_begin(t->s, &sequence));
    serve_span span = {.sequence = sequence, .token = f->prompt, .n = f->prompt_tokens, .want = SERVE_LAST};
    for (int i = 0; i < f->greedy_tokens; i++) {
        MUST(serve_step(t->s, &span, 1, logits));
        const int32_t next = largest(logits, t->V);
        cr_assert_eq(next, f->greedy[i], "%s: greedy token %d: %d, transformers %d", name, i, next, f->greedy[i]);
        span = (serve_span){.sequence = sequence, .token = &f->greedy[i], .n = 1, .want = SERVE_LAST};
    }
    serve_sequence_end(t->s, sequence);
    free(logits);
}

/* Packed as it is, and what is packed once more; in folders that are removed again. */
static void compare_packed(const serve_fixture *f, const char *name, const float *want)
{
    const packed_options as_is = {.experts = PACKED_AS_IS, .dense = PACKED_AS_IS};
    char dir[2][128], command[320], what[128];
    const char *from = f->dir;
    for (int i = 0; i < 2; i++) {
        model *m;
        test_serve t;
        snprintf(dir[i], sizeof dir[i], "/tmp/moe_fixture_%d_%s_%d", (int)getpid(), name, i);
        MUST(model_open(&m, from));
        MUST(packed_write(m, dir[i], &as_is));
        model_close(m);
        test_serve_open(&t, dir[i], (test_serve_options){.context = f->prompt_tokens});
        float *got = test_serve_logits(&t, f->prompt, f->prompt_tokens, f->prompt_tokens);
        snprintf(what, sizeof what, "%s, packed %d times", name, i + 1);
        test_serve_same(what, got, want, f->prompt_tokens, f->V);
        free(got);
        test_serve_close(&t);
        from = dir[i];
    }
    snprintf(command, sizeof command, "rm -r %s %s", dir[0], dir[1]);
    cr_assert_eq(system(command), 0);
}

ParameterizedTest(char (*name)[64], serve_fixtures, equals_transformers)
{
    serve_fixture f;
    test_serve t;
    MUST(serve_fixture_open(&f, *name));
    test_serve_open(&t, f.dir, (test_serve_options){.context = f.prompt_tokens + f.greedy_tokens});
    cr_assert_eq(t.V, f.V);
    float *got = test_serve_logits(&t, f.prompt, f.prompt_tokens, f.prompt_tokens);
    const double d = distance(got, &f);
    cr_assert(d <= LIMIT * f.scale, "%s: largest distance %.3g, %.3g of the logit scale; expected at most %.0e of it", *name, d, d / f.scale, LIMIT);
    fprintf(stderr, "%s: largest distance %.2g of the logit scale (transformers' own rounding %.2g)\n", *name, d / f.scale, f.noise / f.scale);
    compare_greedy(&t, &f, *name);
    compare_packed(&f, *name, got);
    free(got);
    test_serve_close(&t);
    serve_fixture_close(&f);
}
