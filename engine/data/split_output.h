/* One split of the data being prepared: text of documents in, token files and counts out. Private to engine/data.
 * Text is tokenized in pieces of about a megabyte, cut where every supported splitter cuts too (split_output.c says where), so a
 * document may be larger than memory.
 * One thread. A document that yields no token leaves no trace. */
#ifndef MOE_ENGINE_DATA_SPLIT_OUTPUT_H
#define MOE_ENGINE_DATA_SPLIT_OUTPUT_H

#include <stdbool.h>
#include <stdint.h>

#include "engine/data/megatron_writer.h"
#include "models/text/text_buffer.h"
#include "models/text/tokenizer.h"

typedef struct split_output {
    const tokenizer *tok;
    megatron_writer writer;
    int64_t *count; /* [vocab] how often each id occurs */
    int64_t bytes;  /* of text */
    text_buffer text;
    token_ids ids;
    bool open;          /* a document with tokens has been begun and not closed in the writer */
    bool begun;         /* the next token is the first of its document */
    int64_t text_start; /* offset in the document's file of text.data[0], for messages */
    const char *where;  /* the document's file, or "file:line" */
} split_output;

moe_err split_output_open(split_output *o, const tokenizer *tok, const char *dir, const char *split) MOE_MUST_CHECK;
void split_output_close(split_output *o);

/* A new document (or the part of one) begins; `where` outlives it, `offset` is where it begins in there. */
void split_output_begin(split_output *o, const char *where, int64_t offset);
moe_err split_output_text(split_output *o, const char *text, size_t n) MOE_MUST_CHECK;
moe_err split_output_end(split_output *o) MOE_MUST_CHECK;
moe_err split_output_finish(split_output *o) MOE_MUST_CHECK;

/* Where [0, n) may be cut: tokens of the two sides are the tokens of the whole. 0: nowhere. */
size_t split_output_safe_cut(const char *text, size_t n);

#endif
