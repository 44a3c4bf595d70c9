/* Every family's logits against transformers, by the training decoder, or its refusal; the serving engine
 * has the same fixtures in tests of its own. */
#include <criterion/criterion.h>
#include <criterion/parameterized.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "models/family.h"
#include "models/formats/hf.h"
#include "tests/engine/run_fixture.h"
#include "tests/fixtures/serve_fixture.h"

static const double PARITY = 1e-4; /* of the largest logit: ten times what two orders of fp32 sums differ by (`noise`) */

static void write_yaml(test_run *r, const serve_fixture *f)
{
    char *from = realpath(f->dir, NULL);
    FILE *out = fopen(r->yaml, "w");
    cr_assert(from != NULL && out != NULL);
    fprintf(out,
            "model: {from: %s}\n"
            "data: {path: tokens.bin}\n"
            "train: {steps: 1, seq_len: %d, tokens_per_step: %d, micro_batch_tokens: %d}\n"
            "memory: {host: 512MiB, ssd: [store/], buffered: true}\n"
            "run: {threads: 2}\n",
            from, f->prompt_tokens, f->prompt_tokens, f->prompt_tokens);
    fclose(out);
    free(from);
}

static bool is_refused(const char *name)
{
    model_spec spec;
    test_run r;
    serve_fixture f;
    MUST(serve_fixture_open(&f, name));
    MUST(hf_config_load(&spec, f.dir));
    const bool refused = model_family_find(spec.model_type)->served_only != NULL;
    if (refused) {
        test_run_make(&r, name, 4096, f.V);
        write_yaml(&r, &f);
        cr_assert_eq(test_run_open(&r, NULL), MOE_E_CONFIG);
        cr_assert(strstr(moe_error_text(), "which is served, not trained") != NULL, "%s", moe_error_text());
        test_run_close(&r);
    }
    serve_fixture_close(&f);
    return refused;
}

static void run_family(const char *name)
{
    serve_fixture f;
    test_run r;
    double worst = 0;
    MUST(serve_fixture_open(&f, name));
    cr_assert(8 * f.noise < PARITY * f.scale, "%s: the fixture is too noisy for its tolerance", name);
    test_run_make(&r, name, 4096, f.V);
    write_yaml(&r, &f);
    MUST(test_run_open(&r, NULL));
    const size_t n = (size_t)f.prompt_tokens * (size_t)f.V;
    float *got = malloc(n * sizeof *got);
    r.t.decoder.moe.balance = NULL;
    MUST(decoder_forward(&r.t.decoder, f.prompt, f.prompt_tokens, 0, false));
    MUST(decoder_logits(&r.t.decoder, 0, f.prompt_tokens, got));
    for (size_t i = 0; i < n; i++) {
        const double d = fabs((double)got[i] - (double)f.logits[i]);
        worst = d > worst ? d : worst;
        cr_assert(d <= PARITY * f.scale, "%s: logit %zu of token %zu: got %.9g, transformers %.9g, tolerance %.3g", name, i % (size_t)f.V,
                  i / (size_t)f.V, (double)got[i], (double)f.logits[i], PARITY * f.scale);
    }
    fprintf(stderr, "%s: worst distance %.2f of the tolerance\n", name, worst / (PARITY * f.scale));
    free(got);
    test_run_close(&r);
    serve_fixture_close(&f);
}

ParameterizedTestParameters(families, equal_transformers)
{
    static char names[32][64];
    int n = 0;
    while (serve_fixture_names[n] != NULL) {
        snprintf(names[n], sizeof names[n], "%s", serve_fixture_names[n]);
        n++;
    }
    return cr_make_param_array(char[64], names, (size_t)n);
}

ParameterizedTest(char (*name)[64], families, equal_transformers)
{
    if (!is_refused(*name))
        run_family(*name);
}
