/* Three small tokenizers in the styles of Qwen, gpt-oss and GPT-2 against ids of Hugging Face tokenizers (tests/fixtures/text),
 * decoding, merging against a plain quadratic definition, and files that are damaged or ask for what we do not compute. */
#include <criterion/criterion.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "models/formats/json_reader.h"
#include "models/text/bpe.h"
#include "models/text/text_buffer.h"
#include "models/text/tokenizer.h"
#include "models/text/utf8.h"

#define FIXTURES "tests/fixtures/text/"

static const char *const names[] = {"qwen", "o200k", "gpt2"};
enum { NAMES = 3, MOST_IDS = 4096 };

static char *read_file(const char *path, size_t *n)
{
    FILE *f = fopen(path, "rb");
    cr_assert_not_null(f, "%s", path);
    char *text = malloc(1 << 20);
    *n = fread(text, 1, (1 << 20) - 1, f);
    text[*n] = '\0';
    fclose(f);
    return text;
}

static tokenizer *open_fixture(const char *name)
{
    char path[256];
    tokenizer *t = NULL;
    snprintf(path, sizeof path, FIXTURES "%s", name);
    cr_assert_eq(tokenizer_open(&t, path), MOE_OK, "%s", moe_error_text());
    return t;
}

/* --- the oracle's ids ---------------------------------------------------------------------------------------------------------
 */

typedef struct fixture_case {
    char *text;
    size_t n;
    int32_t ids[2][NAMES][MOST_IDS]; /* [specials][tokenizer] */
    int count[2][NAMES];
} fixture_case;

static void parse_ids(json_reader *r, fixture_case *c, int specials)
{
    int which = 0;
    while (which < NAMES && !json_is(r, names[which]))
        which++;
    cr_assert_lt(which, NAMES);
    cr_assert_eq(json_expect(r, JSON_ARRAY), MOE_OK);
    for (json_event e;;) {
        int64_t id;
        cr_assert_eq(json_next(r, &e), MOE_OK);
        if (e == JSON_ARRAY_END)
            break;
        cr_assert_eq(json_int(r, 0, 1 << 20, &id), MOE_OK);
        c->ids[specials][which][c->count[specials][which]++] = (int32_t)id;
    }
}

static void parse_case(fixture_case *c, const char *line, size_t n)
{
    json_reader r;
    json_event e;
    json_open(&r, "case", line, n);
    cr_assert_eq(json_expect(&r, JSON_OBJECT), MOE_OK);
    bool same = true;
    while (json_next(&r, &e) == MOE_OK && e == JSON_KEY) {
        if (json_is(&r, "text")) {
            cr_assert_eq(json_expect(&r, JSON_STRING), MOE_OK);
            c->text = malloc(r.raw_bytes + 1);
            c->n = json_decode(&r, c->text);
        } else if (json_is(&r, "specials")) {
            cr_assert_eq(json_expect(&r, JSON_OBJECT), MOE_OK);
            while (json_next(&r, &e) == MOE_OK && e == JSON_KEY) {
                same = false;
                parse_ids(&r, c, 1);
            }
        } else {
            parse_ids(&r, c, 0);
        }
    }
    if (same) {
        memcpy(c->ids[1], c->ids[0], sizeof c->ids[1]);
        memcpy(c->count[1], c->count[0], sizeof c->count[1]);
    }
}

/* Calls check for every case of the fixture. */
static int each_case(void (*check)(const fixture_case *c, void *arg), void *arg)
{
    FILE *f = fopen(FIXTURES "cases.jsonl", "r");
    char *line = NULL;
    size_t room = 0;
    int cases = 0;
    cr_assert_not_null(f);
    for (ssize_t n; (n = getline(&line, &room, f)) > 0; cases++) {
        fixture_case *c = calloc(1, sizeof *c);
        parse_case(c, line, (size_t)n);
        check(c, arg);
        free(c->text);
        free(c);
    }
    free(line);
    fclose(f);
    return cases;
}

static void check_ids(const fixture_case *c, void *arg)
{
    tokenizer **tok = arg;
    for (int specials = 0; specials < 2; specials++)
        for (int k = 0; k < NAMES; k++) {
            token_ids ids = {0};
            cr_assert_eq(tokenizer_encode(tok[k], c->text, c->n, specials, &ids), MOE_OK, "%s", moe_error_text());
            const int n = c->count[specials][k];
            cr_assert(ids.n == (size_t)n && (n == 0 || memcmp(ids.id, c->ids[specials][k], (size_t)n * 4) == 0),
                      "%s, specials %d: %zu ids, expected %d, for \"%.*s\"", names[k], specials, ids.n, n, (int)c->n, c->text);
            free(ids.id);
        }
}

Test(tokenizer, ids_of_hugging_face)
{
    tokenizer *tok[NAMES];
    for (int k = 0; k < NAMES; k++)
        tok[k] = open_fixture(names[k]);
    cr_assert_gt(each_case(check_ids, tok), 150);
    for (int k = 0; k < NAMES; k++)
        tokenizer_close(tok[k]);
}

static void check_pieces(const fixture_case *c, void *arg)
{
    const tokenizer *tok = arg;
    token_ids ids = {0};
    text_buffer back = {0};
    cr_assert_eq(tokenizer_encode(tok, c->text, c->n, false, &ids), MOE_OK);
    for (size_t i = 0; i < ids.n; i++) {
        const char *bytes;
        size_t n;
        cr_assert_eq(tokenizer_piece(tok, ids.id[i], &bytes, &n), MOE_OK);
        cr_assert_eq(text_buffer_append(&back, bytes, n), MOE_OK);
    }
    cr_assert(back.n == c->n && memcmp(back.data ? back.data : "", c->text, c->n) == 0, "\"%.*s\"", (int)c->n, c->text);
    text_buffer_free(&back);
    free(ids.id);
}

Test(tokenizer, pieces_make_the_text_again)
{
    tokenizer *t = open_fixture("o200k"); /* no normalizer: every byte comes back */
    each_case(check_pieces, t);
    const char *bytes;
    size_t n;
    cr_assert_eq(tokenizer_piece(t, tokenizer_vocab(t), &bytes, &n), MOE_E_DATA);
    cr_assert_eq(tokenizer_piece(t, -1, &bytes, &n), MOE_E_DATA);
    cr_assert_eq(n, 0);
    cr_assert_eq(tokenizer_piece(t, tokenizer_eos(t), &bytes, &n), MOE_OK);
    cr_assert(n == 10 && memcmp(bytes, "<|return|>", 10) == 0);
    tokenizer_close(t);
}

static void *encode_all(void *arg)
{
    tokenizer *tok[NAMES] = {arg, arg, arg};
    for (int k = 0; k < 2; k++) {
        token_ids ids = {0};
        for (int i = 0; i < 2000; i++)
            if (tokenizer_encode(tok[k], "Hello, \xC3\xA4 world! 12345 e\xCC\x81 don't", 33, true, &ids) != MOE_OK)
                return NULL;
        free(ids.id);
    }
    return arg;
}

Test(tokenizer, threads_share_one)
{
    tokenizer *t = open_fixture("qwen");
    pthread_t thread[3];
    for (int i = 0; i < 3; i++)
        cr_assert_eq(pthread_create(&thread[i], NULL, encode_all, t), 0);
    for (int i = 0; i < 3; i++) {
        void *done;
        pthread_join(thread[i], &done);
        cr_assert_not_null(done);
    }
    tokenizer_close(t);
}

Test(tokenizer, end_of_sequence)
{
    static const struct {
        const char *name;
        int32_t eos;
        int vocab;
    } cases[] = {{"qwen", 511, 513}, {"o200k", 511, 512}, {"gpt2", 511, 513}};
    for (int i = 0; i < NAMES; i++) {
        tokenizer *t = open_fixture(cases[i].name);
        cr_assert_eq(tokenizer_eos(t), cases[i].eos, "%s: %d", cases[i].name, tokenizer_eos(t));
        cr_assert_eq(tokenizer_vocab(t), cases[i].vocab);
        cr_assert_not(tokenizer_is_bytes(t));
        tokenizer_close(t);
    }
}

Test(tokenizer, plain_bytes_and_saving)
{
    char dir[] = "/tmp/moe_tokenizer_XXXXXX", path[64];
    cr_assert_not_null(mkdtemp(dir));
    for (int k = 0; k < 2; k++) {
        tokenizer *t, *again;
        cr_assert_eq(tokenizer_open(&t, k ? FIXTURES "qwen/tokenizer.json" : "bytes"), MOE_OK);
        cr_assert_eq(tokenizer_save(t, dir), MOE_OK, "%s", moe_error_text());
        cr_assert_eq(tokenizer_open(&again, dir), MOE_OK, "%s", moe_error_text());
        cr_assert_eq(tokenizer_is_bytes(again), k == 0);
        cr_assert_eq(tokenizer_vocab(again), tokenizer_vocab(t));
        cr_assert_eq(tokenizer_eos(again), tokenizer_eos(t));
        tokenizer_close(t);
        tokenizer_close(again);
    }
    tokenizer *t;
    token_ids ids = {0};
    cr_assert_eq(tokenizer_open(&t, "bytes"), MOE_OK);
    cr_assert_eq(tokenizer_encode(t,
                                  "\0\xFF"
                                  "a",
                                  3, false, &ids),
                 MOE_OK);
    cr_assert(ids.n == 3 && ids.id[0] == 0 && ids.id[1] == 255 && ids.id[2] == 'a');
    cr_assert_eq(tokenizer_eos(t), -1);
    free(ids.id);
    tokenizer_close(t);
    for (int k = 0; k < 2; k++) {
        snprintf(path, sizeof path, "%s/%s", dir, k ? "tokenizer_config.json" : "tokenizer.json");
        unlink(path);
    }
    rmdir(dir);
}

Test(tokenizer, invalid_text_is_an_error_and_leaves_nothing)
{
    tokenizer *t = open_fixture("qwen");
    token_ids ids = {0};
    cr_assert_eq(tokenizer_encode(t, "abc\xFFzz", 6, false, &ids), MOE_E_DATA);
    cr_assert_eq(ids.n, 0);
    cr_assert_not_null(strstr(moe_error_text(), "not valid UTF-8: byte 0xff at offset 3"), "%s", moe_error_text());
    tokenizer_close(t);
}

/* --- merging ------------------------------------------------------------------------------------------------------------------
 */

enum { TEST_MERGES = 40 };

typedef struct test_merges {
    char left[TEST_MERGES][64], right[TEST_MERGES][64];
    int n;
} test_merges;

/* Random merges over "a", "b", "c"; every part is a letter or the result of an earlier merge. */
static void make_merges(bpe *b, test_merges *m, unsigned *seed)
{
    char parts[TEST_MERGES + 3][64] = {"a", "b", "c"};
    int count = 3;
    for (int c = 0; c < 256; c++) {
        const char byte = (char)c;
        cr_assert_eq(bpe_add_piece(b, c, &byte, 1, true), MOE_OK);
    }
    while (m->n < TEST_MERGES) {
        char both[128];
        const char *left = parts[rand_r(seed) % count], *right = parts[rand_r(seed) % count];
        snprintf(both, sizeof both, "%s%s", left, right);
        if (strlen(both) > 12 || bpe_find(b, both, strlen(both)) >= 0)
            continue;
        cr_assert_eq(bpe_add_piece(b, 256 + m->n, both, strlen(both), true), MOE_OK);
        cr_assert_eq(bpe_add_merge(b, m->n, left, strlen(left), right, strlen(right)), MOE_OK);
        snprintf(m->left[m->n], 64, "%s", left);
        snprintf(m->right[m->n++], 64, "%s", right);
        snprintf(parts[count++], 64, "%.63s", both);
    }
    cr_assert_eq(bpe_finish(b, false, true), MOE_OK);
}

/* The definition: the lowest rank anywhere, its leftmost place, join, again. */
static size_t merge_plainly(const test_merges *m, const char *word, size_t n, char (*piece)[64])
{
    for (size_t i = 0; i < n; i++)
        snprintf(piece[i], 64, "%c", word[i]);
    for (bool merged = true; merged;) {
        merged = false;
        for (int r = 0; r < m->n && !merged; r++)
            for (size_t i = 0; i + 1 < n && !merged; i++)
                if (strcmp(piece[i], m->left[r]) == 0 && strcmp(piece[i + 1], m->right[r]) == 0) {
                    strcat(piece[i], m->right[r]);
                    memmove(piece + i + 1, piece + i + 2, (n - i - 2) * sizeof *piece);
                    n--;
                    merged = true;
                }
    }
    return n;
}

Test(tokenizer, short_and_long_words_agree)
{
    static char piece[512][64];
    unsigned seed = 5;
    for (int round = 0; round < 20; round++) {
        bpe *b;
        bpe_room *room;
        test_merges m = {.n = 0};
        cr_assert_eq(bpe_open(&b), MOE_OK);
        cr_assert_eq(bpe_room_open(&room), MOE_OK);
        make_merges(b, &m, &seed);
        static const size_t lengths[] = {1, 2, 3, 7, 20, 21, 60, 95, 96, 97, 98, 150, 400};
        for (size_t k = 0; k < sizeof lengths / sizeof lengths[0]; k++) {
            char word[512];
            token_ids ids = {0};
            for (size_t i = 0; i < lengths[k]; i++)
                word[i] = (char)('a' + rand_r(&seed) % 3);
            const size_t n = merge_plainly(&m, word, lengths[k], piece);
            cr_assert_eq(bpe_word(b, room, word, lengths[k], &ids), MOE_OK);
            cr_assert_eq(bpe_word(b, room, word, lengths[k], &ids), MOE_OK); /* again, from the cache */
            cr_assert_eq(ids.n, 2 * n, "length %zu: %zu pieces, expected %zu", lengths[k], ids.n / 2, n);
            for (size_t i = 0; i < ids.n; i++)
                cr_assert_eq(ids.id[i], bpe_find(b, piece[i % n], strlen(piece[i % n])), "length %zu, piece %zu", lengths[k], i);
            free(ids.id);
        }
        bpe_room_close(room);
        bpe_close(b);
    }
}

Test(tokenizer, a_megabyte_of_one_letter)
{
    tokenizer *t = open_fixture("qwen");
    static char text[1 << 20];
    static const char letters[] = "ax \n\xCC";
    for (int k = 0; k < 5; k++) {
        token_ids ids = {0};
        memset(text, letters[k], sizeof text);
        for (size_t i = 1; k == 4 && i < sizeof text; i += 2)
            text[i] = (char)(0x81 + i / 2 % 3 * 0x13); /* combining marks of several classes: canonical order */
        cr_assert_eq(tokenizer_encode(t, text, sizeof text, false, &ids), MOE_OK, "%s", moe_error_text());
        cr_assert_gt(ids.n, 0);
        free(ids.id);
    }
    tokenizer_close(t);
}

/* --- files that are wrong -----------------------------------------------------------------------------------------------------
 */

static moe_err open_text(const char *text, size_t n)
{
    char dir[] = "/tmp/moe_tokenizer_XXXXXX", path[64];
    tokenizer *t = NULL;
    cr_assert_not_null(mkdtemp(dir));
    snprintf(path, sizeof path, "%s/tokenizer.json", dir);
    FILE *f = fopen(path, "wb");
    cr_assert_eq(fwrite(text, 1, n, f), n);
    fclose(f);
    const moe_err rc = tokenizer_open(&t, path);
    cr_assert_eq(rc == MOE_OK, t != NULL);
    tokenizer_close(t);
    unlink(path);
    rmdir(dir);
    return rc;
}

Test(tokenizer, what_is_not_supported_is_named)
{
    static const struct {
        const char *name, *from, *to, *sentence;
    } cases[] = {
        {"qwen", "\"type\": \"BPE\"", "\"type\": \"Unigram\"", "expected an array, found an object"},
        {"qwen", "\"type\": \"BPE\"", "\"type\": \"Markov\"", "model \"Markov\" is not supported"},
        {"qwen", "\"type\": \"NFC\"", "\"type\": \"Uppercase\"", "normalizer \"Uppercase\" is not supported"},
        {"qwen", "\"dropout\": null", "\"dropout\": 0.1", "model.dropout is set"},
        {"qwen", "\"type\": \"ByteLevel\"", "\"type\": \"UnicodeScripts\"", "pre_tokenizer \"UnicodeScripts\" is not supported"},
        {"qwen", "\"behavior\": \"Isolated\"", "\"behavior\": \"Merged\"", "behavior \"Merged\" is not supported"},
        {"qwen", "\\\\p{N}|", "\\\\p{Han}|", "'\\p{Han}"},
        {"qwen", "\\\\p{N}|", "\\\\w|", "'\\w' is not supported"},
        {"qwen", "\\\\p{N}|", "[a&&b]|", "'&&' is not supported"},
        {"qwen", "\\\\p{N}|", "(\\\\p{N}|", "missing closing parenthesis"},
        {"qwen", "\"id\": 510", "\"id\": 5", "added token 5 is \"<|im_start|>\" but"},
        {"qwen", "\"id\": 510", "\"id\": 511", "added token 511"},
        {"qwen", "\"!\": 0", "\"!\": 1", "id 1 is given twice"},
        {"qwen", "\"!\": 0", "\"\\\"\": 600", "has two ids"},
        {"qwen", "\"!\": 0", "\"!!\": 0", "byte 0x21 is not in it"},
        {"qwen", "\"!\": 0", "\"!\": -1", "expected a whole number from 0 to"},
        {"qwen", "\"!\": 0", "\"!\": 4000000000", "expected a whole number from 0 to"},
        {"qwen", "\"merges\": [[\"", "\"merges\": [[\"\\u4e00", "merge 0 has characters that stand for no byte"},
        {"qwen", "\"merges\": [[\"", "\"merges\": [[\"zzz", "merge 0: \"zzz"},
        {"gpt2", "\"merges\": [\"", "\"merges\": [\"x", "is not in the vocabulary"},
        {"gpt2", "\"merges\": [\"", "\"merges\": [\" ", "expected two parts and one space"},
        {"gpt2", "\"merges\": [", "\"merges\": [7, ", "expected a string or a pair, found a number"},
        {"gpt2", "\"model\"", "\"module\"", "no \"model\"; this is not a tokenizer.json"},
        {"gpt2", "\"vocab\"", "\"words\"", "model has no \"vocab\""},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char path[256];
        size_t n;
        snprintf(path, sizeof path, FIXTURES "%s/tokenizer.json", cases[i].name);
        char *text = read_file(path, &n), *changed = malloc(n + 256);
        char *at = strstr(text, cases[i].from);
        cr_assert_not_null(changed);
        cr_assert_not_null(at, "case %zu: no %s", i, cases[i].from);
        *at = '\0';
        sprintf(changed, "%s%s%s", text, cases[i].to, at + strlen(cases[i].from));
        cr_assert_eq(open_text(changed, strlen(changed)), MOE_E_DATA, "%s", cases[i].to);
        cr_assert_not_null(strstr(moe_error_text(), cases[i].sentence), "%s: got \"%s\"", cases[i].to, moe_error_text());
        free(text);
        free(changed);
    }
}

Test(tokenizer, every_part_of_a_file_is_an_error)
{
    size_t n;
    char *text = read_file(FIXTURES "qwen/tokenizer.json", &n);
    while (n > 0 && text[n - 1] != '}')
        n--;
    cr_assert_eq(open_text(text, n), MOE_OK, "%s", moe_error_text());
    for (size_t k = 1; k < n; k += 61)
        cr_assert_eq(open_text(text, k), MOE_E_DATA, "prefix of %zu bytes", k);
    cr_assert_eq(open_text(text, 0), MOE_E_DATA);
    free(text);
    tokenizer *t;
    cr_assert_eq(tokenizer_open(&t, "/nonexistent/tokenizer.json"), MOE_E_NOINPUT);
    cr_assert_eq(tokenizer_open(&t, "tests"), MOE_E_NOINPUT);
}
