/* moe-serve logits: the ids from the command line or a file, one sequence through the engine, rows into a .npy file. */
#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "engine/serve/commands.h"
#include "memory/budget.h"

enum {
    LOGITS_CHUNK = 64,               /* tokens of a step: their logits are held */
    MAX_IDS_BYTES = 64 << 20,        /* of a file of ids                        */
    NPY_ALIGN = 64,                  /* the header ends on a multiple of it     */
};

typedef struct id_list {
    int32_t *id;
    int64_t n, capacity;
} id_list;

static moe_err add_id(id_list *l, int64_t x, int V, const char *where)
{
    if (x < 0 || x >= V)
        return moe_fail(MOE_E_DATA, "%s: token %lld: id %lld is not in the vocabulary of %d", where, (long long)l->n, (long long)x, V);
    if (l->n == l->capacity) {
        const int64_t more = l->capacity > 0 ? 2 * l->capacity : 256;
        int32_t *id = realloc(l->id, (size_t)more * sizeof *id);
        if (id == NULL)
            return moe_fail(MOE_E_OS, "%s: out of memory", where);
        l->id = id;
        l->capacity = more;
    }
    l->id[l->n++] = (int32_t)x;
    return MOE_OK;
}

/* Decimal numbers between commas and blanks. */
static moe_err parse_ids(id_list *l, const char *text, size_t n, int V, const char *where)
{
    for (size_t i = 0; i < n;) {
        if (text[i] == ',' || isspace((unsigned char)text[i])) {
            i++;
            continue;
        }
        int64_t x = 0;
        const size_t first = i;
        for (; i < n && isdigit((unsigned char)text[i]) && x <= INT32_MAX; i++)
            x = 10 * x + (text[i] - '0');
        if (i == first)
            return moe_fail(MOE_E_DATA, "%s: byte %zu: expected token ids between commas or blanks", where, i);
        TRY(add_id(l, x, V, where));
    }
    if (l->n == 0)
        return moe_fail(MOE_E_DATA, "%s: no token id", where);
    return MOE_OK;
}

static moe_err read_ids(id_list *l, io *disk, const char *tokens, int V)
{
    if (tokens[0] != '\0' && strspn(tokens, "0123456789, ") == strlen(tokens))
        return parse_ids(l, tokens, strlen(tokens), V, "--tokens");
    void *text;
    size_t n;
    TRY(io_read_file(disk, tokens, MAX_IDS_BYTES, &text, &n));
    const moe_err rc = parse_ids(l, text, n, V, tokens);
    free(text);
    return rc;
}

/* Version 1.0 of the format: magic, length of a Python dictionary, the dictionary, blanks up to NPY_ALIGN, a line end. */
static bool write_header(FILE *f, int64_t rows, int64_t cols)
{
    char text[NPY_ALIGN * 2];
    memset(text, ' ', sizeof text);
    const int n = snprintf(text + 10, sizeof text - 10, "{'descr': '<f4', 'fortran_order': False, 'shape': (%lld, %lld), }", (long long)rows,
                           (long long)cols);
    memcpy(text, "\x93NUMPY\x01\x00", 8);
    text[8] = (char)(sizeof text - 10);
    text[9] = 0;
    text[10 + n] = ' ';
    text[sizeof text - 1] = '\n';
    return fwrite(text, 1, sizeof text, f) == sizeof text;
}

/* rows tokens from the first one on. */
static moe_err check_finite(const float *logits, int64_t first, int rows, size_t V)
{
    for (size_t i = 0; i < (size_t)rows * V; i++)
        if (!isfinite(logits[i]))
            return moe_fail(MOE_E_NUMERIC, "logit %zu of token %lld is no finite number: weights or config.json are damaged, or values overflow", i % V,
                            (long long)first + (long long)(i / V));
    return MOE_OK;
}

static moe_err write_logits(session *s, const id_list *l, float *logits, FILE *f, const char *name)
{
    const size_t V = (size_t)model_spec_of(s->model)->V;
    int sequence;
    TRY(serve_sequence_begin(s->serve, &sequence));
    bool good = write_header(f, l->n, (int64_t)V);
    for (int64_t at = 0; at < l->n && good; at += LOGITS_CHUNK) {
        const int64_t left = l->n - at;
        serve_span span = {.sequence = sequence, .token = l->id + at, .n = left < LOGITS_CHUNK ? (int)left : LOGITS_CHUNK, .want = SERVE_ALL};
        TRY(serve_step(s->serve, &span, 1, logits));
        if (span.rc != MOE_OK)
            return moe_error_set(span.rc, span.text);
        TRY(check_finite(logits, at, span.n, V));
        good = fwrite(logits, V * sizeof *logits, (size_t)span.n, f) == (size_t)span.n;
    }
    if (!good || fflush(f) != 0)
        return moe_fail(MOE_E_IO, "%s: cannot write: %s", name, strerror(errno));
    return MOE_OK;
}

/* Beside its name first. */
static moe_err write_file(session *s, const id_list *l, float *logits, const char *name)
{
    char part[4096];
    if ((size_t)snprintf(part, sizeof part, "%s.part", name) >= sizeof part)
        return moe_fail(MOE_E_CREATE, "%s: the name is too long", name);
    FILE *f = fopen(part, "wb");
    if (f == NULL)
        return moe_fail(MOE_E_CREATE, "%s: cannot create: %s", part, strerror(errno));
    moe_err rc = write_logits(s, l, logits, f, part);
    if (fclose(f) != 0 && rc == MOE_OK)
        rc = moe_fail(MOE_E_IO, "%s: cannot write: %s", part, strerror(errno));
    if (rc == MOE_OK && rename(part, name) != 0)
        rc = moe_fail(MOE_E_CREATE, "%s: cannot create: %s", name, strerror(errno));
    if (rc != MOE_OK)
        remove(part);
    return rc;
}

moe_err command_logits(const session_options *options, const char *tokens, const char *out)
{
    session_options o = *options;
    session s;
    id_list l = {0};
    void *logits = NULL;
    moe_err rc;
    o.sequences = 1;
    o.chunk = LOGITS_CHUNK;
    TRY(session_open(&s, &o));
    const int V = model_spec_of(s.model)->V;
    TRY_GOTO(read_ids(&l, s.io, tokens, V), rc, done);
    const int positions = model_spec_of(s.model)->max_positions;
    if (l.n > positions)
        TRY_GOTO(moe_fail(MOE_E_USAGE, "%lld tokens; the model has %d positions", (long long)l.n, positions), rc, done);
    s.config.max_context = l.n;
    TRY_GOTO(budget_alloc(&logits, (size_t)LOGITS_CHUNK * (size_t)V * sizeof(float), "logits"), rc, done);
    TRY_GOTO(session_start(&s), rc, done);
    TRY_GOTO(write_file(&s, &l, logits, out), rc, done);
done:
    budget_free(logits);
    free(l.id);
    session_close(&s);
    return rc;
}
