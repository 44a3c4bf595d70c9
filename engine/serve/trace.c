/* Traces from files: the choice of the format, the binary one, and the sorted lists that come out of all three. Owns no file
 * after it returns. Threads: pure functions. Rule: sizes are compared before they are multiplied. */
#include "engine/serve/trace.h"

#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/serve/trace_private.h"

moe_err trace_add(trace_list *l, const char *name, trace_access a)
{
    if (l->n == TRACE_ACCESSES_MAX)
        return moe_fail(MOE_E_DATA, "%s: more than %d accesses", name, TRACE_ACCESSES_MAX);
    if (l->n == l->room) {
        const int64_t room = l->room == 0 ? 4096 : 2 * l->room;
        trace_access *item = realloc(l->item, (size_t)room * sizeof *item);
        if (item == NULL)
            return moe_fail(MOE_E_OS, "%s: out of memory (%lld accesses)", name, (long long)room);
        l->item = item;
        l->room = room;
    }
    l->item[l->n++] = a;
    return MOE_OK;
}

/* --- the binary format -------------------------------------------------------------------------------------------------------
 */

enum { HEADER = 4 * sizeof(int32_t) };

static int32_t read_int(const unsigned char *p)
{
    return (int32_t)((uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24);
}

static moe_err parse_binary(trace_list *l, const char *name, const unsigned char *p, size_t bytes)
{
    if (bytes < HEADER)
        return moe_fail(MOE_E_DATA, "%s: %zu bytes; a trace begins with a header of %zu", name, bytes, (size_t)HEADER);
    const int64_t L = read_int(p), T = read_int(p + 4), K = read_int(p + 8);
    if (L < 1 || L > TRACE_LAYERS_MAX || T < 1 || T > TRACE_ACCESSES_MAX || K < 1 || K > TRACE_EXPERTS_MAX ||
        L * K > TRACE_ACCESSES_MAX / T)
        return moe_fail(MOE_E_DATA,
                        "%s: a header of %lld layers, %lld tokens, %lld experts a token; expected 1 .. %d, at least 1, 1 .. %d",
                        name, (long long)L, (long long)T, (long long)K, TRACE_LAYERS_MAX, TRACE_EXPERTS_MAX);
    const int64_t n = L * T * K;
    if (bytes != HEADER + (size_t)n * sizeof(int32_t))
        return moe_fail(MOE_E_DATA, "%s: %zu bytes; %lld layers, %lld tokens and %lld experts make %zu", name, bytes,
                        (long long)L, (long long)T, (long long)K, HEADER + (size_t)n * sizeof(int32_t));
    for (int64_t i = 0; i < n; i++) {
        const int32_t id = read_int(p + HEADER + (size_t)i * sizeof id);
        if (id < 0 || id >= TRACE_EXPERTS_MAX)
            return moe_fail(MOE_E_DATA, "%s: expert %d at token %lld, layer %lld; expected 0 .. %d", name, id,
                            (long long)(i / (L * K)), (long long)(i / K % L), TRACE_EXPERTS_MAX - 1);
        TRY(trace_add(l, name, (trace_access){(int32_t)(i / (L * K)), (int32_t)(i / K % L), id}));
    }
    l->tokens = (int32_t)T;
    return MOE_OK;
}

/* --- the lists ---------------------------------------------------------------------------------------------------------------
 */

static int by_place(const void *a, const void *b)
{
    const trace_access *x = a, *y = b;
    if (x->token != y->token)
        return x->token < y->token ? -1 : 1;
    if (x->layer != y->layer)
        return x->layer < y->layer ? -1 : 1;
    return (x->expert > y->expert) - (x->expert < y->expert);
}

/* Sorted, each once. */
static moe_err build(trace *out, const trace_list *l, const char *name)
{
    if (l->n == 0)
        return moe_fail(MOE_E_DATA, "%s: no choice of an expert in it; expected at least one token", name);
    qsort(l->item, (size_t)l->n, sizeof *l->item, by_place);
    out->tokens = l->tokens;
    for (int64_t i = 0; i < l->n; i++) {
        out->layers = l->item[i].layer >= out->layers ? l->item[i].layer + 1 : out->layers;
        out->experts = l->item[i].expert >= out->experts ? l->item[i].expert + 1 : out->experts;
    }
    const int64_t cells = out->tokens * out->layers;
    if (cells > 8 * (int64_t)TRACE_ACCESSES_MAX)
        return moe_fail(MOE_E_DATA, "%s: %lld tokens of %d layers are more than a replay can hold", name, (long long)out->tokens,
                        out->layers);
    out->begin = calloc((size_t)cells + 1, sizeof *out->begin);
    out->expert = malloc((size_t)l->n * sizeof *out->expert);
    if (out->begin == NULL || out->expert == NULL)
        return moe_fail(MOE_E_OS, "%s: out of memory (%lld accesses)", name, (long long)l->n);
    int64_t cell = 0;
    for (int64_t i = 0; i < l->n; i++) {
        const trace_access *a = &l->item[i];
        if (i > 0 && by_place(a, a - 1) == 0)
            continue;
        for (const int64_t here = (int64_t)a->token * out->layers + a->layer; cell < here;)
            out->begin[++cell] = out->accesses;
        out->expert[out->accesses++] = a->expert;
    }
    while (cell < cells)
        out->begin[++cell] = out->accesses;
    return MOE_OK;
}

moe_err trace_parse(trace *out, const char *name, const void *data, size_t bytes)
{
    *out = (trace){0};
    const char *text = data;
    trace_list l = {0};
    moe_err rc;
    if (bytes >= 4 && text[3] == '\0') /* no layer count needs its fourth byte, no text has such a byte */
        rc = parse_binary(&l, name, data, bytes);
    else if (bytes > 0 && text[0] == '{')
        rc = trace_parse_jsonl(&l, name, text, bytes);
    else if (bytes > 0 && (text[0] == '#' || (text[0] >= 'a' && text[0] <= 'z')))
        rc = trace_parse_csv(&l, name, text, bytes);
    else
        rc = moe_fail(
            MOE_E_DATA,
            "%s: not a routing trace; expected JSON lines, CSV with named columns, or int32 L, T, K, n_greedy and ids%s", name,
            bytes > 5 && memcmp(text,
                                "\xfd"
                                "7zXZ",
                                5) == 0
                ? "; it is compressed: unpack it with xz -dk"
                : "");
    if (rc == MOE_OK)
        rc = build(out, &l, name);
    free(l.item);
    if (rc != MOE_OK)
        trace_free(out);
    return rc;
}

void trace_free(trace *t)
{
    free(t->begin);
    free(t->expert);
    *t = (trace){0};
}

/* --- files -------------------------------------------------------------------------------------------------------------------
 */

static moe_err read_all(FILE *f, const char *path, char **data, size_t *bytes)
{
    size_t room = 0, n = 0;
    char *buf = NULL;
    for (bool more = true; more;) {
        if (n == room) {
            room = room == 0 ? 1 << 16 : 2 * room;
            char *larger = room > 2 * (size_t)TRACE_BYTES_MAX ? NULL : realloc(buf, room);
            if (larger == NULL) {
                free(buf);
                return room > 2 * (size_t)TRACE_BYTES_MAX
                           ? moe_fail(MOE_E_DATA, "%s: more than %d MiB; a trace is smaller", path, TRACE_BYTES_MAX >> 20)
                           : moe_fail(MOE_E_OS, "%s: out of memory (%zu bytes)", path, room);
            }
            buf = larger;
        }
        const size_t got = fread(buf + n, 1, room - n, f);
        n += got;
        more = got > 0;
    }
    if (ferror(f)) {
        const int err = errno;
        free(buf);
        return moe_fail(MOE_E_NOINPUT, "%s: cannot read: %s", path, strerror(err));
    }
    *data = buf;
    *bytes = n;
    return MOE_OK;
}

moe_err trace_read(trace *out, const char *path)
{
    *out = (trace){0};
    FILE *f = fopen(path, "rbe");
    if (f == NULL)
        return moe_fail(MOE_E_NOINPUT, "%s: cannot open: %s", path, strerror(errno));
    char *data = NULL;
    size_t bytes = 0;
    moe_err rc = read_all(f, path, &data, &bytes);
    fclose(f);
    if (rc == MOE_OK)
        rc = trace_parse(out, path, data, bytes);
    free(data);
    return rc;
}
