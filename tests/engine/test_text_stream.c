/* Streaming text: equal to what Hugging Face decodes at once (tests/fixtures/text/decode.jsonl), whole characters only, stop strings
 * wherever the tokens are cut, ends of text. */
#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/serve/text_stream.h"
#include "models/formats/json_reader.h"
#include "models/text/utf8.h"

#define FIXTURES "tests/fixtures/text/"

enum { MOST = 4096 };

typedef struct streamed {
    char text[MOST];
    size_t n;
    text_finish finish;
    const char *stop;
    int used; /* tokens until it finished */
} streamed;

static tokenizer *open_tokenizer(const char *name)
{
    char path[256];
    tokenizer *t;
    snprintf(path, sizeof path, strcmp(name, "bytes") == 0 ? "%s" : FIXTURES "%s", name);
    cr_assert_eq(tokenizer_open(&t, path), MOE_OK, "%s", moe_error_text());
    return t;
}

static void take(streamed *out, const char *text, size_t n)
{
    cr_assert_lt(out->n + n, (size_t)MOST);
    cr_assert_eq(utf8_valid_prefix(text, n), n, "a piece is whole characters");
    memcpy(out->text + out->n, text, n);
    out->text[out->n += n] = '\0';
}

static void stream(streamed *out, const text_stream_options *o, const int32_t *id, int n)
{
    text_stream *s;
    const char *text;
    size_t bytes;
    *out = (streamed){0};
    cr_assert_eq(text_stream_open(&s, o), MOE_OK, "%s", moe_error_text());
    for (int i = 0; i < n; i++) {
        cr_assert_eq(text_stream_push(s, id[i], &text, &bytes), MOE_OK, "%s", moe_error_text());
        take(out, text, bytes);
        if (text_stream_finish(s) != TEXT_RUNNING && out->used == 0)
            out->used = i + 1;
    }
    cr_assert_eq(text_stream_end(s, &text, &bytes), MOE_OK);
    take(out, text, bytes);
    cr_assert_eq(text_stream_end(s, &text, &bytes), MOE_OK);
    cr_assert_eq(bytes, 0, "the end comes once");
    out->finish = text_stream_finish(s);
    out->stop = text_stream_stop(s);
    text_stream_close(s);
}

/* Plain bytes as tokens. */
static int bytes_of(int32_t *id, const char *text)
{
    int n = 0;
    for (; text[n]; n++)
        id[n] = (unsigned char)text[n];
    return n;
}

typedef struct decode_case {
    char tokenizer[16], *text, *skipped;
    int32_t id[256];
    int n;
} decode_case;

static void parse_case(decode_case *c, const char *line, size_t bytes)
{
    json_reader r;
    *c = (decode_case){0};
    json_open(&r, "decode.jsonl", line, bytes);
    cr_assert_eq(json_expect(&r, JSON_OBJECT), MOE_OK);
    for (json_event e; json_next(&r, &e) == MOE_OK && e == JSON_KEY;) {
        if (json_is(&r, "ids")) {
            cr_assert_eq(json_expect(&r, JSON_ARRAY), MOE_OK);
            for (int64_t id; json_next(&r, &e) == MOE_OK && e == JSON_NUMBER;) {
                cr_assert_eq(json_int(&r, 0, 1 << 20, &id), MOE_OK);
                c->id[c->n++] = (int32_t)id;
            }
        } else {
            char **to = json_is(&r, "text") ? &c->text : json_is(&r, "skipped") ? &c->skipped : NULL, *name;
            cr_assert_eq(json_get_string(&r, to != NULL ? to : &name), MOE_OK, "%s", moe_error_text());
            if (to == NULL) {
                snprintf(c->tokenizer, sizeof c->tokenizer, "%s", name);
                free(name);
            }
        }
    }
}

Test(text_stream, decodes_what_hugging_face_decodes)
{
    FILE *f = fopen(FIXTURES "decode.jsonl", "r");
    cr_assert_not_null(f);
    tokenizer *t[2] = {open_tokenizer("qwen"), open_tokenizer("gpt2")};
    static char line[1 << 16];
    int cases = 0;
    for (decode_case c; fgets(line, sizeof line, f); cases++) {
        static streamed out;
        parse_case(&c, line, strlen(line));
        for (int skip = 0; skip < 2; skip++) {
            stream(&out, &(text_stream_options){.tokenizer = t[strcmp(c.tokenizer, "gpt2") == 0], .skip_special = skip}, c.id, c.n);
            cr_assert_str_eq(out.text, skip ? c.skipped : c.text, "line %d, skip_special %d", cases + 1, skip);
        }
        free(c.text);
        free(c.skipped);
    }
    cr_assert_eq(cases, 240);
    fclose(f);
    tokenizer_close(t[0]);
    tokenizer_close(t[1]);
}

Test(text_stream, a_character_comes_when_it_is_finished)
{
    tokenizer *t = open_tokenizer("bytes");
    text_stream *s;
    cr_assert_eq(text_stream_open(&s, &(text_stream_options){.tokenizer = t}), MOE_OK);
    static const unsigned char smile[] = {0xF0, 0x9F, 0x99, 0x82, 0xF0, 0x9F, 'x'};
    static const char *const comes[] = {"", "", "", "\xF0\x9F\x99\x82", "", "", "\xEF\xBF\xBDx"};
    const char *text;
    size_t n;
    for (size_t i = 0; i < sizeof smile; i++) {
        cr_assert_eq(text_stream_push(s, smile[i], &text, &n), MOE_OK);
        cr_assert(n == strlen(comes[i]) && memcmp(text, comes[i], n) == 0, "byte %zu: %.*s", i, (int)n, text);
    }
    text_stream_close(s);
    tokenizer_close(t);
}

/* The definition: the text before the stop string that ends first, the longest of those. */
static size_t cut(const char *text, const char *const *stop, int nstop, const char **by)
{
    *by = NULL;
    for (size_t end = 1; end <= strlen(text); end++) {
        size_t longest = 0;
        for (int i = 0; i < nstop; i++) {
            const size_t n = strlen(stop[i]);
            if (n <= end && n > longest && strncmp(text + end - n, stop[i], n) == 0) {
                longest = n;
                *by = stop[i];
            }
        }
        if (longest > 0)
            return end - longest;
    }
    return strlen(text);
}

Test(text_stream, stop_strings_wherever_tokens_are_cut)
{
    static const char *const stop[] = {"aab", "ab\xC3\xA9", "bb", "aabb", "\xC3\xA9\xC3\xA9"};
    static const char *const letter[] = {"a", "b", "\xC3\xA9", "a"};
    tokenizer *t = open_tokenizer("bytes");
    static streamed out;
    uint32_t random = 1;
    int stops = 0;
    for (int round = 0; round < 3000; round++) {
        char text[64] = "";
        int32_t id[64];
        for (int i = 0; i < 12; i++) {
            random = random * 1664525u + 1013904223u;
            strcat(text, letter[random >> 30]);
        }
        const int nstop = 1 + round % 5;
        const char *by;
        const size_t n = cut(text, stop, nstop, &by);
        stream(&out, &(text_stream_options){.tokenizer = t, .stop = stop, .nstop = nstop}, id, bytes_of(id, text));
        cr_assert(out.n == n && memcmp(out.text, text, n) == 0, "%s: %s, expected %zu bytes", text, out.text, n);
        cr_assert_eq(out.stop, by);
        cr_assert_eq(out.finish, by ? TEXT_STOP : TEXT_RUNNING);
        stops += by != NULL;
    }
    cr_assert(stops > 500 && stops < 2900, "%d", stops);
    tokenizer_close(t);
}

Test(text_stream, whole_tokens_hold_a_stop_string_like_single_bytes)
{
    tokenizer *t = open_tokenizer("qwen");
    static streamed out;
    token_ids ids = {0};
    static const char text[] = "the end of the line. Then the next one.";
    cr_assert_eq(tokenizer_encode(t, text, strlen(text), false, &ids), MOE_OK);
    for (size_t from = 0; from < strlen(text); from++)
        for (size_t n = 1; n <= 6 && from + n <= strlen(text); n++) {
            char stop[8] = "";
            memcpy(stop, text + from, n);
            const char *const stops[] = {stop}, *by;
            const size_t kept = cut(text, stops, 1, &by);
            stream(&out, &(text_stream_options){.tokenizer = t, .stop = stops, .nstop = 1}, ids.id, (int)ids.n);
            cr_assert(out.n == kept && memcmp(out.text, text, kept) == 0, "\"%s\": %s", stop, out.text);
            cr_assert_gt(out.used, 0);
        }
    free(ids.id);
    tokenizer_close(t);
}

Test(text_stream, nothing_of_a_partial_match_comes_too_early)
{
    tokenizer *t = open_tokenizer("bytes");
    text_stream *s;
    const char *const stop[] = {"</s>"};
    const char *text;
    size_t n;
    cr_assert_eq(text_stream_open(&s, &(text_stream_options){.tokenizer = t, .stop = stop, .nstop = 1}), MOE_OK);
    static const char in[] = "x<</s<a", *const comes[] = {"x", "", "<", "", "", "</s", "<a"};
    for (size_t i = 0; i < strlen(in); i++) {
        cr_assert_eq(text_stream_push(s, in[i], &text, &n), MOE_OK);
        cr_assert(n == strlen(comes[i]) && memcmp(text, comes[i], n) == 0, "byte %zu: %.*s", i, (int)n, text);
    }
    text_stream_close(s);
    tokenizer_close(t);
}

Test(text_stream, an_end_token_ends_and_what_waited_comes)
{
    tokenizer *t = open_tokenizer("qwen");
    static streamed out;
    const int32_t eos[] = {511, 509};
    const char *const stop[] = {"b!"};
    token_ids ids = {0};
    cr_assert_eq(tokenizer_encode(t, "ab<|im_end|>!", 13, true, &ids), MOE_OK);
    stream(&out, &(text_stream_options){.tokenizer = t, .eos = eos, .neos = 2, .stop = stop, .nstop = 1}, ids.id, (int)ids.n);
    cr_assert_str_eq(out.text, "ab");
    cr_assert_eq(out.finish, TEXT_EOS);
    const int32_t padded[] = {510, 5000, -3, 512, 510};
    stream(&out, &(text_stream_options){.tokenizer = t, .skip_special = true}, padded, 5);
    cr_assert_str_eq(out.text, "<tool>", "special tokens and padding have no text, other added tokens do");
    free(ids.id);
    tokenizer_close(t);
}

Test(text_stream, bad_stop_strings_are_refused)
{
    tokenizer *t = open_tokenizer("bytes");
    static char huge[TEXT_MAX_STOP_BYTES + 2];
    memset(huge, 'x', sizeof huge - 1);
    const char *const bad[] = {"", huge, "\xC3"};
    text_stream *s;
    for (int i = 0; i < 3; i++)
        cr_assert_eq(text_stream_open(&s, &(text_stream_options){.tokenizer = t, .stop = bad + i, .nstop = 1}), MOE_E_USAGE);
    cr_assert_eq(text_stream_open(&s, &(text_stream_options){.tokenizer = t, .stop = bad, .nstop = TEXT_MAX_STOPS + 1}), MOE_E_USAGE);
    cr_assert_null(s);
    tokenizer_close(t);
}

/* Tokenizers that mark spaces and fall back to bytes: whole characters as the bytes come, and the space in front of a text left out at its beginning
 * only. */
Test(text_stream, marks_for_spaces_and_single_bytes)
{
    static const char *const names[] = {"kinds/llama.json", "kinds/mistral.json", "kinds/xlmr.json", "gguf/spm.gguf"};
    static const char *const texts[] = {"The experts of the model", " two  spaces ", "caf\u00e9 \u6771\u4eac \U0001F600\U0001F680 x", "\U0001F468\u200d\U0001F469\u200d\U0001F467", "a\nb\tc"};
    for (size_t k = 0; k < sizeof names / sizeof *names; k++) {
        tokenizer *t = open_tokenizer(names[k]);
        for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
            token_ids ids = {0};
            text_buffer want = {0};
            streamed all, middle;
            cr_assert_eq(tokenizer_encode(t, texts[i], strlen(texts[i]), false, &ids), MOE_OK);
            cr_assert_eq(tokenizer_decode(t, ids.id, ids.n, false, &want), MOE_OK);
            stream(&all, &(text_stream_options){.tokenizer = t, .begins = true}, ids.id, (int)ids.n);
            cr_expect(all.n == want.n && memcmp(all.text, want.data, want.n) == 0, "%s: \"%s\", expected \"%.*s\"", names[k], all.text, (int)want.n, want.data);
            stream(&middle, &(text_stream_options){.tokenizer = t}, ids.id, (int)ids.n);
            cr_expect(middle.n == all.n + 1 && middle.text[0] == ' ' && strcmp(middle.text + 1, all.text) == 0, "%s: \"%s\" behind other text, \"%s\" alone",
                      names[k], middle.text, all.text);
            text_buffer_free(&want);
            free(ids.id);
        }
        tokenizer_close(t);
    }
}
