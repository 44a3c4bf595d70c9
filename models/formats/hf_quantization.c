/* Owns what quantization_config in a config.json may say. What is quantised, and how, the tensors say themselves (hf_reader.c); here only what they do not
 * show is refused: other methods, other blocks, other codes.
 * Threads: pure.
 * Rule: a key that is not known, and not null, is refused: it could change the numbers. */
#include "models/formats/hf_private.h"

/* Which tensors are quantised, how the scales were rounded, what transformers does with them. (Activations are never quantised to FP8 here: a scheme for
 * them says how a GPU saves time.) */
static const char *const IGNORED[] = {"modules_to_not_convert", "modules_to_convert", "ignored_layers", "scale_fmt", "dequantize", "expert_dtype"};

typedef struct quantization {
    bool fp8, mxfp4, blocks;
} quantization;

static moe_err read_method(json_reader *r, quantization *q)
{
    TRY(json_expect(r, JSON_STRING));
    q->fp8 = json_is(r, "fp8");
    q->mxfp4 = json_is(r, "mxfp4");
    return q->fp8 || q->mxfp4 ? MOE_OK
                              : json_fail(r, MOE_E_CONFIG, "quantization_config.quant_method is \"%.*s\": expected \"fp8\" or \"mxfp4\"",
                                          (int)(r->raw_bytes < 64 ? r->raw_bytes : 64), r->raw);
}

static moe_err read_blocks(json_reader *r, quantization *q)
{
    json_event e;
    int n = 0;
    TRY(json_next(r, &e));
    q->blocks = e == JSON_ARRAY;
    for (int64_t size; q->blocks;) {
        TRY(json_next(r, &e));
        if (e == JSON_ARRAY_END)
            break;
        if (e != JSON_NUMBER || n++ == 2)
            q->blocks = false;
        else
            TRY(json_int(r, INT64_MIN, INT64_MAX, &size));
        q->blocks = q->blocks && size == 128;
    }
    q->blocks = q->blocks && n == 2;
    return q->blocks ? MOE_OK : json_fail(r, MOE_E_CONFIG, "quantization_config.weight_block_size: expected [128, 128], no other blocks are read");
}

static moe_err read_word(json_reader *r, const char *key, const char *expected)
{
    json_event e;
    TRY(json_next(r, &e));
    if (e == JSON_NULL || (e == JSON_STRING && json_is(r, expected)))
        return MOE_OK;
    return json_fail(r, MOE_E_CONFIG, "quantization_config.%s: expected \"%s\"", key, expected);
}

static moe_err read_member(json_reader *r, quantization *q)
{
    json_event e;
    if (json_is(r, "quant_method"))
        return read_method(r, q);
    if (json_is(r, "weight_block_size"))
        return read_blocks(r, q);
    if (json_is(r, "fmt"))
        return read_word(r, "fmt", "e4m3");
    if (json_is(r, "activation_scheme"))
        return read_word(r, "activation_scheme", "dynamic");
    for (size_t i = 0; i < sizeof IGNORED / sizeof *IGNORED; i++)
        if (json_is(r, IGNORED[i]))
            return json_skip(r);
    const json_reader key = *r;
    TRY(json_next(r, &e));
    return e == JSON_NULL ? MOE_OK
                          : json_fail(&key, MOE_E_CONFIG, "quantization_config.%.*s is not known and might change the numbers",
                                      (int)(key.raw_bytes < 64 ? key.raw_bytes : 64), key.raw);
}

moe_err hf_read_quantization(json_reader *r)
{
    quantization q = {0};
    json_event e;
    TRY(json_next(r, &e));
    if (e == JSON_NULL)
        return MOE_OK;
    if (e != JSON_OBJECT)
        return json_fail(r, MOE_E_CONFIG, "quantization_config is %s: expected an object or null", json_event_name(e));
    const json_reader object = *r;
    for (;;) {
        TRY(json_next(r, &e));
        if (e == JSON_OBJECT_END)
            break;
        TRY(read_member(r, &q));
    }
    if (!q.fp8 && !q.mxfp4)
        return json_fail(&object, MOE_E_CONFIG, "quantization_config has no quant_method: expected \"fp8\" or \"mxfp4\"");
    if (q.fp8 && !q.blocks)
        return json_fail(&object, MOE_E_CONFIG, "quantization_config has no weight_block_size: expected [128, 128], no other scales are read");
    return MOE_OK;
}
