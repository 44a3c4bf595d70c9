/* The text that each id stands for, made once from the vocabulary and the decoder, so that streams need no decoder.
 * Fills tokenizer_parts. One thread. Rule: a piece is bytes, not always characters. */
#include <stdlib.h>
#include <string.h>

#include "models/text/tokenizer_file.h"

static moe_err make(piece_texts *out, const tokenizer_parts *p, bool first)
{
    const int32_t ids = bpe_ids(p->model);
    text_buffer b = {0};
    moe_err rc = MOE_OK;
    out->end = calloc((size_t)ids + 1, sizeof *out->end);
    if (!out->end)
        return moe_fail(MOE_E_OS, "no memory for %d pieces", ids);
    for (int32_t id = 0; id < ids && rc == MOE_OK; id++) {
        const char *text;
        size_t n;
        if (bpe_piece(p->model, id, &text, &n))
            rc = text_decoder_piece(p->decoder, text, n, first, &b);
        out->end[id] = b.n;
    }
    out->text = b.data;
    out->n = ids;
    return rc;
}

moe_err tokenizer_pieces_make(tokenizer_parts *p)
{
    TRY(make(&p->middle, p, false));
    return make(&p->first, p, true);
}
