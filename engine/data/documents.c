/* Where a document goes is decided from its size and content alone: the same files give the same splits in any order of the
 * command line. A NUL byte means a binary file: no text has one, in any tokenizer. UTF-8 is asked for only where tokens are made
 * of characters; plain bytes take Latin-1 as well. JSON is UTF-8 by its own rule. One thread. */
#include "engine/data/documents.h"

#include <stdio.h>
#include <string.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "engine/data/source.h"
#include "models/formats/json_reader.h"
#include "models/text/utf8.h"

enum { READ_BYTES = 1 << 18 };
static const size_t most_line = (size_t)1 << 30; /* bytes of one JSONL line */

/* Where the document is cut: its bytes from here on are validation. Still to be moved to a border of characters. */
static int64_t cut_of(const documents *d, int64_t bytes) { return bytes - (int64_t)(d->val_fraction * (double)bytes + 0.5); }

static bool is_cut(const documents *d, int64_t bytes) { return bytes >= CUT_BYTES || d->number == d->cut_number; }

/* The whole document, by hash of its content: equal documents land together. */
static split_output *by_hash(documents *d, const char *text, size_t n)
{
    const double threshold = d->val_fraction * 18446744073709551616.0; /* 2^64; the fraction is below 1 */
    return XXH3_64bits(text, n) < (uint64_t)threshold ? &d->val : &d->train;
}

static void count_document(documents *d, int64_t bytes)
{
    if (bytes > d->largest_bytes) {
        d->largest_bytes = bytes;
        d->largest = d->number;
    }
    d->number++;
}

/* A document in memory. */
static moe_err add_whole(documents *d, const char *where, const char *text, size_t n)
{
    if (n == 0)
        return MOE_OK;
    size_t cut = n;
    split_output *to = &d->train;
    if (is_cut(d, (int64_t)n)) {
        cut = (size_t)cut_of(d, (int64_t)n);
        while (cut < n && utf8_is_continuation(text[cut]))
            cut++;
    } else {
        to = by_hash(d, text, n);
    }
    count_document(d, (int64_t)n);
    split_output_begin(to, where, 0);
    TRY(split_output_text(to, text, cut));
    TRY(split_output_end(to));
    if (cut == n)
        return MOE_OK;
    split_output_begin(&d->val, where, (int64_t)cut);
    TRY(split_output_text(&d->val, text + cut, n - cut));
    return split_output_end(&d->val);
}

static moe_err check_text(const char *path, const char *text, size_t n, int64_t offset)
{
    const char *nul = memchr(text, 0, n);
    if (!nul)
        return MOE_OK;
    return moe_fail(MOE_E_DATA, "%s: a binary file (NUL at byte %lld), expected text", path, (long long)(offset + (nul - text)));
}

static void show_progress(const documents *d, const source *s)
{
    if (d->progress)
        d->progress(d->progress_arg, source_position(s));
}

/* A text file that is cut: streams through, to train up to the cut and to val after it. */
static moe_err stream_cut(documents *d, source *s, const char *path, int64_t bytes, char *buf)
{
    int64_t at = 0, cut = cut_of(d, bytes);
    split_output *to = &d->train;
    count_document(d, bytes);
    split_output_begin(to, path, 0);
    for (size_t n;;) {
        TRY(source_read(s, buf, READ_BYTES, &n));
        if (n == 0)
            break;
        TRY(check_text(path, buf, n, at));
        size_t k = 0; /* of these go to train */
        if (to == &d->train) {
            k = cut - at < (int64_t)n ? (size_t)(cut - at) : n;
            for (; k < n && utf8_is_continuation(buf[k]); cut++)
                k++;
            TRY(split_output_text(to, buf, k));
            if (k < n) {
                TRY(split_output_end(to));
                to = &d->val;
                split_output_begin(to, path, at + (int64_t)k);
            }
        }
        TRY(split_output_text(&d->val, buf + k, n - k));
        at += (int64_t)n;
        show_progress(d, s);
    }
    if (at != bytes)
        return moe_fail(MOE_E_DATA, "%s: changed while it was read (%lld bytes, now %lld)", path, (long long)bytes,
                        (long long)at);
    return split_output_end(to);
}

static moe_err read_whole(source *s, const char *path, int64_t bytes, text_buffer *b)
{
    TRY(text_buffer_reserve(b, (size_t)bytes + 1));
    for (size_t n = 1; n > 0; b->n += n) /* one byte of room more than the file has: its growth is noticed */
        TRY(source_read(s, b->data + b->n, (size_t)bytes + 1 - b->n, &n));
    return b->n == (size_t)bytes ? MOE_OK : moe_fail(MOE_E_DATA, "%s: changed while it was read", path);
}

static moe_err read_text_file(documents *d, source *s, const char *path)
{
    int64_t bytes;
    TRY(source_length(s, &bytes));
    if (bytes == 0)
        return moe_fail(MOE_E_DATA, "%s: the file is empty", path);
    text_buffer b = {0};
    moe_err rc;
    if (bytes >= CUT_BYTES) {
        TRY_GOTO(text_buffer_reserve(&b, READ_BYTES), rc, done);
        TRY_GOTO(stream_cut(d, s, path, bytes, b.data), rc, done);
    } else {
        TRY_GOTO(read_whole(s, path, bytes, &b), rc, done);
        TRY_GOTO(check_text(path, b.data, b.n, 0), rc, done);
        TRY_GOTO(add_whole(d, path, b.data, b.n), rc, done);
    }
    show_progress(d, s);
done:
    text_buffer_free(&b);
    return rc;
}

/* --- JSONL --------------------------------------------------------------------------------------------------------------------
 */

moe_err jsonl_text(const char *where, const char *line, size_t n, text_buffer *text)
{
    json_reader r;
    bool found = false;
    json_open(&r, where, line, n);
    TRY(json_expect(&r, JSON_OBJECT));
    for (json_event e;;) {
        TRY(json_next(&r, &e));
        if (e == JSON_OBJECT_END)
            break;
        if (!json_is(&r, "text")) {
            TRY(json_skip(&r));
            continue;
        }
        if (found)
            return json_fail(&r, MOE_E_DATA, "a second \"text\"");
        found = true;
        TRY(json_expect(&r, JSON_STRING));
        text->n = 0;
        TRY(text_buffer_reserve(text, r.raw_bytes + 1));
        text->n = json_decode(&r, text->data);
    }
    TRY(json_expect(&r, JSON_END));
    return found ? MOE_OK : moe_fail(MOE_E_DATA, "%s: the object has no \"text\"", where);
}

static bool is_blank(const char *line, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (line[i] != ' ' && line[i] != '\t' && line[i] != '\r')
            return false;
    return true;
}

static moe_err add_line(documents *d, const char *path, int64_t number, const char *line, size_t n, text_buffer *text)
{
    if (number == 1 && n >= 3 && memcmp(line, "\xEF\xBB\xBF", 3) == 0) { /* a byte order mark is no JSON, but editors write it */
        line += 3;
        n -= 3;
    }
    if (is_blank(line, n))
        return MOE_OK;
    char where[512];
    snprintf(where, sizeof where, "%s:%lld", path, (long long)number);
    TRY(jsonl_text(where, line, n, text));
    return add_whole(d, where, text->data, text->n);
}

static moe_err read_lines(documents *d, source *s, const char *path, text_buffer *b, text_buffer *text)
{
    size_t start = 0, searched = 0; /* in b: the line begins; no line feed in [start, searched) */
    int64_t number = 1;
    for (size_t n = 1; n > 0;) {
        TRY(text_buffer_reserve(b, READ_BYTES));
        TRY(source_read(s, b->data + b->n, READ_BYTES, &n));
        b->n += n;
        for (char *end; (end = memchr(b->data + searched, '\n', b->n - searched)); number++) {
            TRY(add_line(d, path, number, b->data + start, (size_t)(end - b->data) - start, text));
            start = searched = (size_t)(end - b->data) + 1;
        }
        b->n -= start;
        memmove(b->data, b->data + start, b->n);
        start = 0;
        searched = b->n;
        if (b->n > most_line)
            return moe_fail(MOE_E_DATA, "%s:%lld: a line of more than %zu bytes", path, (long long)number, most_line);
        show_progress(d, s);
    }
    return add_line(d, path, number, b->data, b->n, text);
}

static bool ends_with(const char *s, size_t n, const char *suffix)
{
    const size_t k = strlen(suffix);
    return n >= k && memcmp(s + n - k, suffix, k) == 0;
}

static bool is_jsonl(const char *path)
{
    size_t n = strlen(path);
    if (ends_with(path, n, ".zst"))
        n -= 4;
    return ends_with(path, n, ".jsonl") || ends_with(path, n, ".ndjson");
}

moe_err documents_read(documents *d, const char *path)
{
    source *s;
    text_buffer b = {0}, text = {0};
    TRY(source_open(&s, path));
    const moe_err rc = is_jsonl(path) ? read_lines(d, s, path, &b, &text) : read_text_file(d, s, path);
    text_buffer_free(&b);
    text_buffer_free(&text);
    source_close(s);
    return rc;
}
