/* Any bytes as a routing trace: no crash, no leak; what comes out is in range, ascending and there once, and can be replayed. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include "engine/serve/replay.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static bool sound(const trace *t)
{
    if (t->tokens < 1 || t->layers < 1 || t->experts < 1 || t->accesses < 1 || t->begin[0] != 0 ||
        t->begin[t->tokens * t->layers] != t->accesses)
        return false;
    for (int64_t cell = 0; cell < t->tokens * t->layers; cell++)
        for (int64_t i = t->begin[cell]; i < t->begin[cell + 1]; i++)
            if (t->expert[i] < 0 || t->expert[i] >= t->experts || (i > t->begin[cell] && t->expert[i] <= t->expert[i - 1]))
                return false;
    return true;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    trace t;
    bool good = true;
    if (trace_parse(&t, "fuzz", data, size) != MOE_OK) {
        good = moe_error_text()[0] != '\0' && t.begin == NULL && t.expert == NULL;
    } else {
        replay_count ours, best;
        good = sound(&t);
        if (good && (int64_t)t.layers * t.experts <= 4096 && t.tokens <= 64 && replay_policy(&t, 3, NULL, &ours) == MOE_OK &&
            replay_optimum(&t, 3, &best) == MOE_OK)
            good = ours.accesses == best.accesses && ours.hits <= best.hits;
    }
    trace_free(&t);
    if (!good) {
        fprintf(stderr, "a trace out of range, a policy better than the optimum, or an error without a sentence\n");
        abort();
    }
    return 0;
}
