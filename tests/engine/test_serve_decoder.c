/* Serving a model with fp32 weights and fp32 pages gives the logits of the training decoder, bit for bit. */
#include <criterion/criterion.h>
#include <criterion/parameterized.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/engine/run_fixture.h"
#undef MUST
#include "tests/engine/serve_harness.h"

static float *decoder_logits_of(const char *name, int32_t *token, int *n)
{
    fixture f;
    test_run r;
    MUST(fixture_open(&f, name));
    *n = f.seq_len;
    memcpy(token, f.tokens, (size_t)f.seq_len * sizeof *token);
    test_run_make(&r, name, 4096, f.spec.V);
    test_run_fixture_yaml(&r, &f);
    MUST(test_run_open(&r, (const char *const[]){"optimizer.expert_weights=f32", NULL})); /* those of the folder, not rounded */
    float *logits = malloc((size_t)f.seq_len * (size_t)f.spec.V * sizeof *logits);
    r.t.decoder.moe.balance = NULL; /* serving is dropless */
    MUST(decoder_forward(&r.t.decoder, token, f.seq_len, 0, false));
    MUST(decoder_logits(&r.t.decoder, 0, f.seq_len, logits));
    test_run_close(&r);
    fixture_close(&f);
    return logits;
}

ParameterizedTestParameters(serve_decoder, equals_training)
{
    static char names[32][64];
    int n = 0;
    for (; fixture_names[n] != NULL; n++)
        snprintf(names[n], sizeof names[n], "%s", fixture_names[n]);
    return cr_make_param_array(char[64], names, (size_t)n);
}

ParameterizedTest(char (*name)[64], serve_decoder, equals_training)
{
    enum { MOST = 512 };
    int32_t token[MOST];
    int n;
    char path[256];
    test_serve t;
    float *want = decoder_logits_of(*name, token, &n);
    snprintf(path, sizeof path, "tests/fixtures/train/%s", *name);
    test_serve_open(&t, path, (test_serve_options){.context = MOST, .chunk = MOST});
    float *got = test_serve_logits(&t, token, n, n);
    test_serve_same(*name, got, want, n, t.V);
    test_serve_close(&t);
    free(got), free(want);
}
