/* Windows from each format of token files, across shards, and every way such a file can be wrong. The shuffle is a permutation.
 */
#include <criterion/criterion.h>
#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "engine/data/dataset.h"

static char dir[64];

static void make_dir(void)
{
    strcpy(dir, "/tmp/moe_dataset_XXXXXX");
    cr_assert_not_null(mkdtemp(dir));
}

static void remove_dir(void)
{
    DIR *d = opendir(dir);
    for (struct dirent *e; (e = readdir(d));)
        unlinkat(dirfd(d), e->d_name, 0);
    closedir(d);
    rmdir(dir);
}

TestSuite(dataset, .init = make_dir, .fini = remove_dir);

static const char *in_dir(const char *name)
{
    static char path[4][256];
    static int next;
    next = (next + 1) % 4;
    snprintf(path[next], sizeof path[next], "%s/%s", dir, name);
    return path[next];
}

static void write_file(const char *name, const void *data, size_t n)
{
    FILE *f = fopen(in_dir(name), "wb");
    cr_assert_not_null(f);
    cr_assert_eq(fwrite(data, 1, n, f), n);
    fclose(f);
}

/* uint16 tokens first, first + 1, ... behind a header. */
static void write_shard(const char *name, const void *header, size_t bytes, int first, int n)
{
    char data[8192];
    memcpy(data, header, bytes);
    for (int i = 0; i < n; i++) {
        const uint16_t t = (uint16_t)(first + i);
        memcpy(data + bytes + 2 * i, &t, 2);
    }
    write_file(name, data, bytes + 2 * (size_t)n);
}

typedef struct index_bytes {
    char data[1024];
    size_t n;
} index_bytes;

static void put(index_bytes *b, const void *data, size_t n)
{
    memcpy(b->data + b->n, data, n);
    b->n += n;
}

/* An index of sequences with these sizes, each a document. */
static index_bytes make_index(int code, int width, const int32_t *sizes, int n)
{
    index_bytes b = {.n = 0};
    const uint64_t version = 1, sequences = (uint64_t)n, marks = (uint64_t)n + 1;
    const unsigned char c = (unsigned char)code;
    put(&b, "MMIDIDX\0\0", 9);
    put(&b, &version, 8);
    put(&b, &c, 1);
    put(&b, &sequences, 8);
    put(&b, &marks, 8);
    put(&b, sizes, (size_t)n * 4);
    int64_t at = 0;
    for (int i = 0; i < n; i++) {
        put(&b, &at, 8);
        at += (int64_t)sizes[i] * width;
    }
    for (int64_t i = 0; i <= n; i++)
        put(&b, &i, 8);
    return b;
}

static dataset *open_ok(const char *path, const char *split, int seq_len)
{
    dataset *d;
    cr_assert_eq(dataset_open(&d, path, split, seq_len), MOE_OK, "%s", moe_error_text());
    return d;
}

static void expect_fail(const char *path, const char *split, int seq_len, moe_err code, const char *sentence)
{
    dataset *d = (dataset *)dir;
    const moe_err rc = dataset_open(&d, path, split, seq_len);
    cr_assert_eq(rc, code, "%s: code %d, expected %d: %s", path, rc, code, moe_error_text());
    cr_assert_null(d);
    cr_assert_not_null(strstr(moe_error_text(), sentence), "expected \"%s\", got \"%s\"", sentence, moe_error_text());
}

/* Every window of d holds consecutive numbers from `first` on. */
static void check_windows(dataset *d, int seq_len, int first, int64_t tokens)
{
    int32_t t[256];
    cr_assert_eq(dataset_tokens(d), tokens);
    cr_assert_eq(dataset_windows(d), (tokens - 1) / seq_len);
    for (int64_t w = dataset_windows(d) - 1; w >= 0; w--) {
        cr_assert_eq(dataset_read(d, w, 65536, t), MOE_OK, "%s", moe_error_text());
        for (int i = 0; i <= seq_len; i++)
            cr_assert_eq(t[i], first + w * seq_len + i, "window %d, token %d: %d", (int)w, i, t[i]);
    }
    cr_assert_neq(dataset_read(d, dataset_windows(d), 65536, t), MOE_OK);
    cr_assert_neq(dataset_read(d, -1, 65536, t), MOE_OK);
}

Test(dataset, windows_overlap_by_the_target)
{
    write_shard("train.bin", "", 0, 100, 50);
    for (int s = 1; s <= 49; s++) {
        dataset *d = open_ok(dir, "train", s);
        check_windows(d, s, 100, 50);
        dataset_close(d);
    }
    expect_fail(dir, "train", 50, MOE_E_DATA, "50 tokens of train data; one window of seq_len 50 needs 51");
    expect_fail(dir, "train", 0, MOE_E_CONFIG, "seq_len 0");
}

Test(dataset, shards_in_the_order_of_their_names_are_one_stream)
{
    int32_t header[256] = {20240520, 1, 30};
    write_shard("fineweb_train_000002.bin", header, 1024, 30, 30);
    header[2] = 7;
    write_shard("fineweb_train_000010.bin", header, 1024, 60, 7);
    header[2] = 30;
    write_shard("fineweb_train_000001.bin", header, 1024, 0, 30);
    header[2] = 20;
    write_shard("fineweb_val_000000.bin", header, 1024, 500, 20);
    write_file("readme.txt", "x", 1);
    dataset *d = open_ok(dir, "train", 8);
    check_windows(d, 8, 0, 67);
    dataset_close(d);
    d = open_ok(dir, "train", 66); /* one window over all three */
    check_windows(d, 66, 0, 67);
    dataset_close(d);
    d = open_ok(dir, "val", 4);
    check_windows(d, 4, 500, 20);
    dataset_close(d);
    expect_fail(dir, "test", 4, MOE_E_NOINPUT, "no test data");
}

Test(dataset, names_without_a_split_are_training_data)
{
    write_shard("b.bin", "", 0, 10, 10);
    write_shard("a.bin", "", 0, 0, 10);
    dataset *d = open_ok(dir, "train", 3);
    check_windows(d, 3, 0, 20);
    dataset_close(d);
    expect_fail(dir, "val", 3, MOE_E_NOINPUT, "no val data");
    d = open_ok(in_dir("b.bin"), "train", 3);
    check_windows(d, 3, 10, 10);
    dataset_close(d);
    expect_fail(in_dir("b.bin"), "val", 3, MOE_E_NOINPUT, "single file is training data");
}

Test(dataset, llmc_of_llama3_has_uint32_tokens)
{
    uint32_t data[256 + 10] = {20240801, 7, 10};
    for (uint32_t i = 0; i < 10; i++)
        data[256 + i] = 100000 + i;
    write_file("train.bin", data, sizeof data);
    dataset *d = open_ok(in_dir("train.bin"), "train", 9);
    int32_t t[10];
    cr_assert_eq(dataset_read(d, 0, 128256, t), MOE_OK);
    cr_assert_eq(t[9], 100009);
    cr_assert_eq(dataset_read(d, 0, 100005, t), MOE_E_DATA);
    cr_assert_not_null(strstr(moe_error_text(), "token 5 is id 100005, but the model's vocabulary has 100005"), "%s",
                       moe_error_text());
    dataset_close(d);
}

Test(dataset, megatron_of_every_type)
{
    static const struct {
        int code, width;
    } types[] = {{1, 1}, {2, 1}, {3, 2}, {4, 4}, {5, 8}, {8, 2}};
    static const int32_t sizes[] = {3, 0, 7, 10};
    for (size_t k = 0; k < sizeof types / sizeof types[0]; k++) {
        char bin[20 * 8] = {0};
        for (int i = 0; i < 20; i++)
            bin[i * types[k].width] = (char)(50 + i); /* little-endian */
        const index_bytes idx = make_index(types[k].code, types[k].width, sizes, 4);
        write_file("x_text_document.bin", bin, (size_t)(20 * types[k].width));
        write_file("x_text_document.idx", idx.data, idx.n);
        dataset *d = open_ok(in_dir("x_text_document"), "train", 6); /* Megatron's prefix */
        check_windows(d, 6, 50, 20);
        dataset_close(d);
        d = open_ok(dir, "train", 6);
        check_windows(d, 6, 50, 20);
        dataset_close(d);
    }
}

Test(dataset, negative_ids_are_named)
{
    const int16_t bin[6] = {1, 2, -3, 4, 5, 6};
    const int32_t sizes[] = {6};
    const index_bytes idx = make_index(3, 2, sizes, 1);
    write_file("train.bin", bin, sizeof bin);
    write_file("train.idx", idx.data, idx.n);
    dataset *d = open_ok(dir, "train", 4);
    int32_t t[5];
    cr_assert_eq(dataset_read(d, 0, 100, t), MOE_E_DATA);
    cr_assert_not_null(strstr(moe_error_text(), "train.bin: token 2 is id -3"), "%s", moe_error_text());
    dataset_close(d);
}

Test(dataset, a_megatron_index_that_lies)
{
    static const int32_t sizes[] = {3, 7, 10};
    static const uint16_t bin[20] = {0};
    static const struct {
        size_t at;
        int bytes;
        int64_t value;
        const char *sentence;
    } cases[] = {
        {0, 1, 'X', "does not begin with MMIDIDX"},
        {9, 8, 2, "version 2; expected 1"},
        {17, 1, 6, "data type code 6"},
        {17, 1, 0, "data type code 0"},
        {17, 1, 4, "sequence 1 has 7 tokens at byte 6; expected byte 12"},
        {18, 8, 4, "4 sequences and 4 document marks make"},
        {18, 8, INT64_MAX, "do not fit in"},
        {18, 8, -1, "do not fit in"},
        {26, 8, INT64_MAX, "do not fit in"},
        {26, 8, 3, "3 sequences and 3 document marks make"},
        {34, 4, -3, "sequence 0 has -3 tokens"},
        {34, 4, 4, "sequence 1 has 7 tokens at byte 6; expected byte 8"},
        {42, 4, 9, "sequences make 38 bytes, but the .bin has 40"},
        {42, 4, 11, "sequence 2 ends at byte 42, but the .bin has 40"},
        {42, 4, INT32_MAX, "sequence 2 ends at byte 4294967314"},
        {54, 8, 1000, "sequence 1 has 7 tokens at byte 1000"},
        {54, 8, -6, "sequence 1 has 7 tokens at byte -6"},
        {78, 8, 4, "document mark 1 is 4; expected 0 to 3"},
        {94, 8, 1, "document mark 3 is 1; expected 2 to 3"},
    };
    write_file("train.bin", bin, sizeof bin);
    for (size_t k = 0; k < sizeof cases / sizeof cases[0]; k++) {
        index_bytes idx = make_index(8, 2, sizes, 3);
        memcpy(idx.data + cases[k].at, &cases[k].value, (size_t)cases[k].bytes);
        write_file("train.idx", idx.data, idx.n);
        expect_fail(dir, "train", 4, MOE_E_DATA, cases[k].sentence);
    }
    const index_bytes idx = make_index(8, 2, sizes, 3);
    for (size_t n = 0; n < idx.n; n++) {
        write_file("train.idx", idx.data, n);
        expect_fail(dir, "train", 4, MOE_E_DATA, "train.idx");
    }
    write_file("train.idx", idx.data, idx.n);
    dataset_close(open_ok(dir, "train", 4));
}

Test(dataset, files_that_are_no_tokens)
{
    static const struct {
        const char *data;
        size_t n;
        const char *sentence;
    } cases[] = {
        {"", 0, "the file is empty"},        {"abcde", 5, "5 bytes; a file of uint16 tokens (nanoGPT) has an even number"},
        {"PK\3\4....", 8, "a zip"},          {"\x1f\x8b......", 8, "gzip"},
        {"\x28\xb5\x2f\xfd....", 8, "zstd"}, {"\x93NUMPY..", 8, "NumPy"},
        {"PAR1....", 8, "Parquet"},          {"MMIDIDX\0\0.", 10, "Megatron index"},
    };
    for (size_t k = 0; k < sizeof cases / sizeof cases[0]; k++) {
        write_file("train.bin", cases[k].data, cases[k].n);
        expect_fail(dir, "train", 4, MOE_E_DATA, cases[k].sentence);
    }
    static const struct {
        int32_t header[3];
        int tokens;
        const char *sentence;
    } llmc[] = {
        {{20240520, 2, 10}, 10, "version 2 with 10 tokens"}, {{20240520, 1, 11}, 10, "expected version 1 and 1046 bytes"},
        {{20240520, 1, -1}, 10, "4294967295 tokens"},        {{20240801, 7, 10}, 10, "expected version 7 and 1064 bytes"},
        {{20240522, 1, 10}, 10, "evaluation file"},
    };
    for (size_t k = 0; k < sizeof llmc / sizeof llmc[0]; k++) {
        int32_t header[256] = {0};
        memcpy(header, llmc[k].header, sizeof llmc[k].header);
        write_shard("train.bin", header, 1024, 0, llmc[k].tokens);
        expect_fail(dir, "train", 4, MOE_E_DATA, llmc[k].sentence);
    }
    static const unsigned char garbage[64] = {0x13, 0x37, 0xff, 0xfe};
    int32_t t[5];
    write_file("train.bin", garbage, sizeof garbage);
    dataset *d = open_ok(dir, "train", 4);
    cr_assert_eq(dataset_read(d, 0, 256, t), MOE_E_DATA);
    cr_assert_not_null(strstr(moe_error_text(), "token 0 is id 14099, but the model's vocabulary has 256"), "%s",
                       moe_error_text());
    dataset_close(d);
}

Test(dataset, missing_files)
{
    expect_fail(in_dir("nowhere"), "train", 4, MOE_E_NOINPUT, "nowhere");
    expect_fail(dir, "train", 4, MOE_E_NOINPUT, "there is no .bin file");
    cr_assert_eq(mkdir(in_dir("train.bin"), 0777), 0);
    expect_fail(dir, "train", 4, MOE_E_NOINPUT, "not a regular file");
    rmdir(in_dir("train.bin"));
}

Test(dataset, a_file_that_shrinks_is_an_error)
{
    write_shard("train.bin", "", 0, 0, 100);
    dataset *d = open_ok(dir, "train", 9);
    int32_t t[10];
    cr_assert_eq(truncate(in_dir("train.bin"), 100), 0);
    cr_assert_eq(dataset_read(d, 10, 65536, t), MOE_E_DATA);
    cr_assert_not_null(strstr(moe_error_text(), "ends at byte 180"), "%s", moe_error_text());
    cr_assert_eq(dataset_read(d, 0, 65536, t), MOE_OK);
    dataset_close(d);
}

/* --- shuffle ------------------------------------------------------------------------------------------------------------------
 */

Test(shuffle, every_epoch_is_a_permutation)
{
    static char seen[5000];
    for (int64_t windows = 1; windows <= 5000; windows += windows < 70 ? 1 : 977)
        for (int64_t epoch = 0; epoch < 3; epoch++) {
            memset(seen, 0, sizeof seen);
            for (int64_t i = 0; i < windows; i++) {
                const int64_t w = dataset_shuffled(windows, 42, epoch * windows + i);
                cr_assert(w >= 0 && w < windows && !seen[w], "windows %d, epoch %d: %d twice or outside", (int)windows,
                          (int)epoch, (int)w);
                seen[w] = 1;
            }
        }
}

Test(shuffle, epochs_and_seeds_differ_and_numbers_stay)
{
    int same_epoch = 0, same_seed = 0, in_place = 0;
    for (int64_t i = 0; i < 1000; i++) {
        const int64_t w = dataset_shuffled(1000, 1, i);
        in_place += w == i;
        same_epoch += w == dataset_shuffled(1000, 1, 1000 + i);
        same_seed += w == dataset_shuffled(1000, 2, i);
    }
    cr_assert(in_place < 10 && same_epoch < 10 && same_seed < 10, "%d %d %d", in_place, same_epoch,
              same_seed); /* 1 each on average */
    /* the numbers are part of the format: a run continues with them */
    static const int64_t want[] = {845312363099, 710162738336, 45814508370,  494095489609,
                                   184183094022, 973384880169, 508542910724, 880005609161};
    for (int64_t i = 0; i < 8; i++)
        cr_assert_eq(dataset_shuffled(INT64_C(1) << 40, 7, i), want[i], "%lld: %lld", (long long)i,
                     (long long)dataset_shuffled(INT64_C(1) << 40, 7, i));
}

Test(shuffle, small_permutations_are_all_reached)
{
    int count[24] = {0};
    for (uint64_t seed = 0; seed < 2400; seed++) {
        int code = 0;
        for (int64_t i = 0; i < 3; i++)
            code = code * 4 + (int)dataset_shuffled(4, seed, i);
        static int index[64];
        static int used;
        if (!index[code])
            index[code] = ++used;
        cr_assert_leq(used, 24);
        count[index[code] - 1]++;
    }
    double chi2 = 0;
    for (int i = 0; i < 24; i++)
        chi2 += (count[i] - 100.0) * (count[i] - 100.0) / 100.0;
    cr_assert_lt(chi2, 60, "chi squared %.1f with 23 degrees of freedom", chi2); /* P(> 60) < 5e-5; the seeds are fixed */
}
