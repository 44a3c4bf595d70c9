/* prepare end to end in a folder under /tmp: what goes where, in which bytes, and every way the input or the out folder can be
 * wrong. */
#include <criterion/criterion.h>
#include <dirent.h>
#include <fcntl.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zstd.h>

#include "engine/data/data_info.h"
#include "engine/data/dataset.h"
#include "engine/data/shard.h"
#include "engine/data/split_output.h"
#include "models/text/bpe.h"
#include "models/text/tokenizer.h"

#define QWEN "tests/fixtures/text/qwen"
#define GPT2 "tests/fixtures/text/gpt2"

static char dir[64];

static void make_dir(void)
{
    strcpy(dir, "/tmp/moe_prepare_XXXXXX");
    cr_assert_not_null(mkdtemp(dir));
}

static void remove_tree(const char *path)
{
    DIR *d = opendir(path);
    if (!d)
        return;
    for (struct dirent *e; (e = readdir(d));)
        if (strcmp(e->d_name, ".") != 0 && strcmp(e->d_name, "..") != 0 && unlinkat(dirfd(d), e->d_name, 0) != 0) {
            char sub[512];
            snprintf(sub, sizeof sub, "%s/%s", path, e->d_name);
            remove_tree(sub);
        }
    closedir(d);
    rmdir(path);
}

static void remove_dir(void) { remove_tree(dir); }

TestSuite(prepare, .init = make_dir, .fini = remove_dir);

static const char *in_dir(const char *name)
{
    static char path[64][256]; /* a path stays for the next 63 */
    static int next;
    next = (next + 1) % 64;
    snprintf(path[next], sizeof path[next], "%s/%s", dir, name);
    return path[next];
}

static const char *write_file(const char *name, const void *data, size_t n)
{
    const char *path = in_dir(name);
    FILE *f = fopen(path, "wb");
    cr_assert_not_null(f);
    cr_assert_eq(fwrite(data, 1, n, f), n);
    fclose(f);
    return path;
}

static const char *write_text(const char *name, const char *text) { return write_file(name, text, strlen(text)); }

static const char *write_zst(const char *name, const void *data, size_t n, size_t drop)
{
    const size_t room = ZSTD_compressBound(n);
    char *packed = malloc(room);
    const size_t k = ZSTD_compress(packed, room, data, n, 1);
    const char *path = write_file(name, packed, k - drop);
    free(packed);
    return path;
}

static moe_err prepare(const char *tok, double fraction, int n, const char *const *files)
{
    const prepare_args a = {
        .tokenizer = tok, .out = in_dir("out"), .val_fraction = fraction, .files = files, .nfiles = n, .quiet = true};
    return data_prepare(&a);
}

static void prepare_ok(const char *tok, double fraction, int n, const char *const *files)
{
    cr_assert_eq(prepare(tok, fraction, n, files), MOE_OK, "%s", moe_error_text());
}

static void expect_fail(const char *tok, double fraction, const char *file, moe_err code, const char *sentence)
{
    const moe_err rc = prepare(tok, fraction, 1, &file);
    cr_assert_eq(rc, code, "%s: code %d, expected %d: %s", file, rc, code, moe_error_text());
    cr_assert_not_null(strstr(moe_error_text(), sentence), "expected \"%s\", got \"%s\"", sentence, moe_error_text());
}

/* All tokens of a split, malloc'ed. */
static int32_t *tokens_of(const char *split, int64_t *n)
{
    shard s;
    char path[256];
    snprintf(path, sizeof path, "%s/out/%s.bin", dir, split);
    cr_assert_eq(shard_open(&s, path), MOE_OK, "%s", moe_error_text());
    int32_t *ids = malloc((size_t)(s.tokens + 1) * sizeof *ids);
    cr_assert_eq(shard_read(&s, 0, s.tokens, 1 << 20, ids), MOE_OK);
    *n = s.tokens;
    shard_close(&s);
    return ids;
}

static void expect_bytes(const char *split, const char *text, size_t n)
{
    int64_t count;
    int32_t *ids = tokens_of(split, &count);
    cr_assert_eq(count, (int64_t)n, "%s: %lld tokens, expected %zu", split, (long long)count, n);
    for (size_t i = 0; i < n; i++)
        cr_assert_eq(ids[i], (unsigned char)text[i], "%s: token %zu is %d", split, i, ids[i]);
    free(ids);
}

static void expect_ids(const char *split, const token_ids *want)
{
    int64_t count;
    int32_t *ids = tokens_of(split, &count);
    cr_assert_eq(count, (int64_t)want->n, "%s: %lld tokens, expected %zu", split, (long long)count, want->n);
    for (size_t i = 0; i < want->n; i++)
        cr_assert_eq(ids[i], want->id[i], "%s: token %zu is %d, expected %d", split, i, ids[i], want->id[i]);
    free(ids);
}

/* --- what goes where ----------------------------------------------------------------------------------------------------------
 */

/* Text of n bytes with two-byte characters and lines; NUL behind it. */
static char *make_text(size_t n, unsigned seed)
{
    static const char *const words[] = {"paternoster ", "fährt ", "the lift",  ".\n",
                                        " – ",          "1984 ",  "Σωκράτης ", "{ x = 1; }\n\n"};
    char *text = malloc(n + 64);
    size_t k = 0;
    while (k < n)
        k += (size_t)sprintf(text + k, "%s", words[rand_r(&seed) % 8]);
    while (n > 0 && ((unsigned char)text[n] & 0xC0) == 0x80)
        text[n--] = '\0';
    text[n] = '\0';
    return text;
}

Test(prepare, a_long_document_gives_its_last_part)
{
    char *text = make_text(3 << 20, 1);
    const size_t n = strlen(text);
    const char *file = write_file("a.txt", text, n);
    prepare_ok("bytes", 0.01, 1, &file);
    size_t cut = n - (size_t)(0.01 * (double)n + 0.5);
    while (((unsigned char)text[cut] & 0xC0) == 0x80)
        cut++;
    expect_bytes("train", text, cut);
    expect_bytes("val", text + cut, n - cut);
    data_info info;
    cr_assert_eq(data_info_read(&info, in_dir("out")), MOE_OK, "%s", moe_error_text());
    cr_assert_str_eq(info.tokenizer, "bytes");
    cr_assert(info.vocab == 256 && info.eos == -1 && !info.largest_cut);
    cr_assert(info.train.tokens == (int64_t)cut && info.train.bytes == (int64_t)cut && info.train.documents == 1);
    cr_assert(info.val.tokens == (int64_t)(n - cut) && info.val.documents == 1);
    free(text);
}

Test(prepare, parts_are_tokenized_apart_and_pieces_change_no_token)
{
    static const char *const names[] = {QWEN, GPT2, "tests/fixtures/text/o200k"};
    char *text = make_text((5 << 20) + 77, 2);
    const size_t n = strlen(text);
    size_t cut = n - (size_t)(0.05 * (double)n + 0.5);
    while (((unsigned char)text[cut] & 0xC0) == 0x80)
        cut++;
    const char *file = write_zst("a.txt.zst", text, n, 0);
    for (int k = 0; k < 3; k++) {
        tokenizer *t;
        token_ids ids = {0};
        cr_assert_eq(tokenizer_open(&t, names[k]), MOE_OK);
        prepare_ok(names[k], 0.05, 1, &file);
        cr_assert_eq(tokenizer_encode(t, text, cut, false, &ids), MOE_OK);
        expect_ids("train", &ids);
        ids.n = 0;
        cr_assert_eq(tokenizer_encode(t, text + cut, n - cut, false, &ids), MOE_OK);
        expect_ids("val", &ids);
        tokenizer_close(t);
        free(ids.id);
    }
    free(text);
}

Test(prepare, safe_cuts)
{
    static const struct {
        const char *text;
        size_t cut;
    } cases[] = {
        {"one line\nand another one", 9},
        {"a\n\nb cdefgh", 4},
        {"a\r\nbcdefghi", 0},
        {"word word word", 9},
        {"a\n bcdefghij", 0},
        {"x \ny3456789", 0},
        {"!\n/x345678", 0},
        {"!\nx1234567", 2},
        {"\xE3\x80\x82\n\xE4\xB8\xAD\xE6\x96\x87\xE4\xB8\xAD", 4},
        {"a\n\xE3\x80\x80\xE4\xB8\xAD\xE6\x96\x87", 0},
        {"", 0},
        {"abc", 0},
        {"\nabcdefgh", 0},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        cr_assert_eq(split_output_safe_cut(cases[i].text, strlen(cases[i].text)), cases[i].cut, "case %zu: %zu", i,
                     split_output_safe_cut(cases[i].text, strlen(cases[i].text)));
}

Test(prepare, documents_are_joined_by_eos_and_bytes_by_nothing)
{
    const char *const files[] = {
        write_text("a.txt", "Hello <|im_end|>"),
        write_text("b.jsonl", "{\"text\": \"w\\u00f6rld\", \"id\": 1}\n\n{\"text\":\"\"}\n{\"text\": \"end\"}")};
    tokenizer *t;
    token_ids ids = {0};
    prepare_ok("bytes", 0, 2, files);
    expect_bytes("train", "Hello <|im_end|>w\xC3\xB6rldend", 25);
    cr_assert_neq(access(in_dir("out/val.bin"), F_OK), 0);
    cr_assert_eq(tokenizer_open(&t, QWEN), MOE_OK);
    prepare_ok(QWEN, 0, 2, files);
    static const char *const texts[] = {"Hello <|im_end|>", "w\xC3\xB6rld", "end"}; /* the marker in a text stays text */
    for (int i = 0; i < 3; i++) {
        cr_assert_eq(tokenizer_encode(t, texts[i], strlen(texts[i]), false, &ids), MOE_OK);
        if (i < 2) {
            cr_assert_eq(token_ids_reserve(&ids, 1), MOE_OK);
            ids.id[ids.n++] = 511;
        }
    }
    expect_ids("train", &ids);
    data_info info;
    cr_assert_eq(data_info_read(&info, in_dir("out")), MOE_OK);
    cr_assert(info.train.documents == 3 && info.eos == 511 && info.vocab == 513);
    tokenizer_close(t);
    free(ids.id);
}

Test(prepare, small_documents_go_whole_by_their_content)
{
    char *lines = malloc(1 << 20);
    size_t n = 0;
    for (int i = 0; i < 3000; i++)
        n += (size_t)sprintf(lines + n, "{\"text\": \"document %04d\"}\n", i);
    const char *file = write_file("a.jsonl", lines, n);
    prepare_ok("bytes", 0.1, 1, &file);
    data_info info, again;
    cr_assert_eq(data_info_read(&info, in_dir("out")), MOE_OK);
    cr_assert_eq(info.train.documents + info.val.documents, 3000);
    cr_assert(info.val.documents > 220 && info.val.documents < 380, "%lld",
              (long long)info.val.documents); /* 300 +- 5 deviations */
    cr_assert_eq(info.val.tokens, info.val.documents * 13);
    file = write_zst("b.jsonl.zst", lines, n, 0);
    prepare_ok("bytes", 0.1, 1, &file);
    cr_assert_eq(data_info_read(&again, in_dir("out")), MOE_OK);
    cr_assert_eq(memcmp(&info, &again, sizeof info), 0);
    free(lines);
}

Test(prepare, the_largest_document_is_cut_when_validation_would_be_empty)
{
    const char *const files[] = {write_text("a.txt", "short"), write_text("b.txt", "abcdefghijklmnopqrst"),
                                 write_text("c.txt", "little")};
    prepare_ok("bytes", 0.1, 3, files);
    data_info info;
    cr_assert_eq(data_info_read(&info, in_dir("out")), MOE_OK);
    cr_assert(info.largest_cut);
    expect_bytes("val", "st", 2);
    expect_bytes("train", "shortabcdefghijklmnopqrlittle", 29);
    const char *file = write_text("d.txt", "x");
    expect_fail("bytes", 0.1, file, MOE_E_DATA, "too little text (1 bytes in the largest of 1 documents) to keep 0.1");
}

Test(prepare, entropy_of_the_unigrams)
{
    const char *file = write_text("a.txt", "aabb");
    data_info info;
    prepare_ok("bytes", 0.5, 1, &file);
    cr_assert_eq(data_info_read(&info, in_dir("out")), MOE_OK);
    cr_assert_float_eq(info.train.entropy, -log(3.0 / 258), 1e-12); /* two a of two tokens, one added to each of 256 */
    cr_assert_float_eq(info.val.entropy, -log(1.0 / 258), 1e-12);
}

Test(prepare, dtype_by_megatrons_rule)
{
    megatron_writer w;
    static const struct {
        int vocab;
        token_type type;
    } cases[] = {{256, TOKEN_U16}, {65499, TOKEN_U16}, {65500, TOKEN_I32}, {151669, TOKEN_I32}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        cr_assert_eq(megatron_writer_open(&w, dir, "x", cases[i].vocab), MOE_OK);
        cr_assert_eq(w.type, cases[i].type);
        const int32_t ids[3] = {1, cases[i].vocab - 1, 0};
        for (int k = 0; k < 1000; k++) {
            cr_assert_eq(megatron_writer_tokens(&w, ids, 1 + k % 3), MOE_OK);
            cr_assert_eq(megatron_writer_end_document(&w), MOE_OK);
            cr_assert_eq(megatron_writer_end_document(&w), MOE_OK); /* nothing between: no document */
        }
        cr_assert_eq(megatron_writer_finish(&w), MOE_OK);
        cr_assert(w.documents == 1000 && w.sequences == 1000 && w.tokens == 1999);
        token_type type;
        int64_t tokens;
        cr_assert_eq(megatron_index_check(in_dir("x.idx.tmp"), 1999 * token_type_bytes(w.type), &type, &tokens), MOE_OK, "%s",
                     moe_error_text());
        cr_assert(type == w.type && tokens == 1999);
        megatron_writer_close(&w);
    }
}

/* --- what is wrong ------------------------------------------------------------------------------------------------------------
 */

Test(prepare, bad_inputs)
{
    static const struct {
        const char *name, *data;
        size_t n;
        const char *tokenizer;
        moe_err code;
        const char *sentence;
    } cases[] = {
        {"a.txt", "", 0, "bytes", MOE_E_DATA, "a.txt: the file is empty"},
        {"a.txt", "ab\0cd", 5, "bytes", MOE_E_DATA, "a.txt: a binary file (NUL at byte 2), expected text"},
        {"a.txt", "ab\0cd", 5, QWEN, MOE_E_DATA, "binary file"},
        {"a.txt", "caf\xE9!", 5, QWEN, MOE_E_DATA, "a.txt: not valid UTF-8 at byte 3 (0xe9); convert it (iconv)"},
        {"a.zst", "plain text", 10, "bytes", MOE_E_DATA, "a.zst: not zstd data"},
        {"a.jsonl", "", 0, "bytes", MOE_E_DATA, "no text in 1 file"},
        {"a.jsonl", "\n  \n{\"text\": \"\"}\n", 17, "bytes", MOE_E_DATA, "no text in 1 file"},
        {"a.jsonl", "{\"text\": \"a\"}\n{\"text\": 1}\n", 26, "bytes", MOE_E_DATA,
         "a.jsonl:2: byte 9: JSON: expected a string, found a number"},
        {"a.jsonl", "{\"text\": \"a\"}\n\n{\"body\": \"b\"}", 28, "bytes", MOE_E_DATA, "a.jsonl:3: the object has no \"text\""},
        {"a.jsonl", "{\"text\": \"a\"}\n{\"text\": \"\xFF\"}\n", 28, "bytes", MOE_E_DATA,
         "a.jsonl:2: byte 10: JSON: expected valid UTF-8"},
        {"a.jsonl", "{\"text\": \"a\"", 12, "bytes", MOE_E_DATA, "a.jsonl:1: byte 12: JSON ends early"},
        {"a.jsonl", "{\"text\": \"a\", \"text\": \"b\"}", 26, "bytes", MOE_E_DATA, "a second \"text\""},
        {"a.jsonl", "[\"text\"]", 8, "bytes", MOE_E_DATA, "a.jsonl:1: byte 0: JSON: expected an object"},
        {"a.jsonl", "hello\n", 6, "bytes", MOE_E_DATA, "a.jsonl:1: byte 0: JSON: expected a value, found 'h'"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        const char *file = write_file(cases[i].name, cases[i].data, cases[i].n);
        expect_fail(cases[i].tokenizer, 0, file, cases[i].code, cases[i].sentence);
        cr_assert_neq(access(in_dir("out"), F_OK), 0, "case %zu left the folder", i);
        unlink(file);
    }
    expect_fail("bytes", 0, in_dir("nowhere.txt"), MOE_E_NOINPUT, "nowhere.txt: No such file");
    expect_fail("bytes", 0, dir, MOE_E_NOINPUT, "not a regular file");
    const char *file = write_text("b.txt", "abc");
    expect_fail(in_dir("nowhere"), 0, file, MOE_E_NOINPUT, "expected a tokenizer.json, a folder with one, a GGUF file, or \"bytes\"");
    expect_fail("bytes", 1, file, MOE_E_USAGE, "--val-fraction 1");
    expect_fail("bytes", -0.1, file, MOE_E_USAGE, "--val-fraction -0.1");
    expect_fail("bytes", NAN, file, MOE_E_USAGE, "--val-fraction nan");
    cr_assert_eq(prepare("bytes", 0, 0, &file), MOE_E_USAGE);
}

Test(prepare, latin1_is_text_for_bytes)
{
    const char *file = write_text("a.txt", "caf\xE9!");
    prepare_ok("bytes", 0, 1, &file);
    expect_bytes("train", "caf\xE9!", 5);
}

Test(prepare, damaged_zstd)
{
    char *text = make_text(300000, 3);
    expect_fail("bytes", 0, write_zst("a.txt.zst", text, strlen(text), 20), MOE_E_DATA, "zstd data ends early");
    const char *file = write_zst("b.txt.zst", text, strlen(text), 0);
    FILE *f = fopen(file, "r+b");
    fseek(f, 2000, SEEK_SET);
    fwrite("garbagegarbagegarbage", 1, 21, f);
    fclose(f);
    expect_fail("bytes", 0, file, MOE_E_DATA, "damaged zstd data");
    free(text);
}

Test(prepare, a_folder_that_is_not_ours_stays)
{
    const char *file = write_text("a.txt", "some text that is long enough");
    cr_assert_eq(mkdir(in_dir("out"), 0777), 0);
    write_text("out/train.bin", "precious");
    expect_fail("bytes", 0.1, file, MOE_E_CREATE, "is not empty (train.bin) and was not made by prepare");
    struct stat st;
    cr_assert(stat(in_dir("out/train.bin"), &st) == 0 && st.st_size == 8);
    unlink(in_dir("out/train.bin"));
    write_text("out/val.bin.tmp", "left by an interrupted prepare");
    prepare_ok("bytes", 0.1, 1, &file);
    cr_assert_neq(access(in_dir("out/val.bin.tmp"), F_OK), 0);
    prepare_ok(QWEN, 0.2, 1, &file); /* ours: replaced */
    cr_assert_eq(access(in_dir("out/tokenizer_config.json"), F_OK), 0);
    prepare_ok("bytes", 0, 1, &file);
    cr_assert_neq(access(in_dir("out/tokenizer_config.json"), F_OK), 0);
    cr_assert_neq(access(in_dir("out/val.idx"), F_OK), 0);
    dataset *d;
    cr_assert_eq(dataset_open(&d, in_dir("out"), "train", 4), MOE_OK, "%s", moe_error_text());
    dataset_close(d);
}

Test(prepare, a_failure_keeps_what_was_there)
{
    const char *file = write_text("a.txt", "some text that is long enough");
    prepare_ok("bytes", 0.1, 1, &file);
    const char *const files[] = {file, write_file("b.txt", "x\0y", 3)};
    cr_assert_eq(prepare("bytes", 0.1, 2, files), MOE_E_DATA);
    dataset *d;
    cr_assert_eq(dataset_open(&d, in_dir("out"), "train", 4), MOE_OK, "%s", moe_error_text());
    cr_assert_eq(dataset_tokens(d), 26);
    dataset_close(d);
    cr_assert_neq(access(in_dir("out/train.bin.tmp"), F_OK), 0);
}

Test(prepare, files_of_two_runs_mixed_are_noticed)
{
    const char *file = write_text("a.txt", "some text that is long enough");
    prepare_ok("bytes", 0.1, 1, &file);
    cr_assert_eq(rename(in_dir("out/data.json"), in_dir("keep.json")), 0);
    remove_tree(in_dir("out"));
    file = write_text("a.txt", "another text, which is somewhat longer");
    prepare_ok("bytes", 0.1, 1, &file);
    cr_assert_eq(rename(in_dir("keep.json"), in_dir("out/data.json")), 0);
    dataset *d;
    cr_assert_eq(dataset_open(&d, in_dir("out"), "train", 4), MOE_E_DATA);
    cr_assert_not_null(strstr(moe_error_text(), "data.json counts 26 train tokens, the files hold 34; run prepare again"), "%s",
                       moe_error_text());
}

Test(prepare, a_second_one_is_refused)
{
    const char *file = write_text("a.txt", "some text that is long enough");
    cr_assert_eq(mkdir(in_dir("out"), 0777), 0);
    const int fd = open(in_dir("out"), O_RDONLY | O_DIRECTORY);
    cr_assert_eq(flock(fd, LOCK_EX), 0);
    expect_fail("bytes", 0.1, file, MOE_E_TEMP, "another prepare is writing there");
    close(fd);
    prepare_ok("bytes", 0.1, 1, &file);
}

Test(prepare, a_full_disk_leaves_nothing)
{
    char *text = make_text(2 << 20, 4);
    const char *file = write_file("a.txt", text, strlen(text));
    static const rlim_t limits[] = {0, 1 << 20, 4190000};
    signal(SIGXFSZ, SIG_IGN); /* a write past the limit fails as on a full disk; each test is a process of its own */
    for (size_t i = 0; i < sizeof limits / sizeof limits[0]; i++) {
        const struct rlimit limit = {limits[i], RLIM_INFINITY};
        cr_assert_eq(setrlimit(RLIMIT_FSIZE, &limit), 0);
        const moe_err rc = prepare("bytes", 0.01, 1, &file);
        const struct rlimit none = {RLIM_INFINITY, RLIM_INFINITY};
        cr_assert_eq(setrlimit(RLIMIT_FSIZE, &none), 0);
        cr_assert_eq(rc, i < 2 ? MOE_E_IO : MOE_OK, "limit %lld: %d %s", (long long)limits[i], rc, moe_error_text());
        cr_assert(i == 2 || strstr(moe_error_text(), "train.bin.tmp: cannot write"), "%s", moe_error_text());
        cr_assert_eq(access(in_dir("out"), F_OK) == 0, i == 2);
    }
    free(text);
}

Test(prepare, out_that_cannot_be_made)
{
    const char *file = write_text("a.txt", "some text that is long enough");
    const prepare_args a = {
        .tokenizer = "bytes", .out = in_dir("no/such/place"), .val_fraction = 0.1, .files = &file, .nfiles = 1, .quiet = true};
    cr_assert_eq(data_prepare(&a), MOE_E_CREATE);
    const prepare_args b = {.tokenizer = "bytes", .out = file, .val_fraction = 0.1, .files = &file, .nfiles = 1, .quiet = true};
    cr_assert_eq(data_prepare(&b), MOE_E_CREATE, "%s", moe_error_text());
    const prepare_args c = {
        .tokenizer = "bytes", .out = "/dev/null/x", .val_fraction = 0.1, .files = &file, .nfiles = 1, .quiet = true};
    cr_assert_eq(data_prepare(&c), MOE_E_CREATE);
}
