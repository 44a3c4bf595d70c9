/* The command line and the text helpers under it: values, errors with suggestions, help from the table. */
#include <criterion/criterion.h>
#include <criterion/redirect.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "engine/base/cli.h"
#include "engine/base/text.h"

typedef struct args {
    bool quiet;
    const char *dir, *resume;
    int64_t tokens;
    uint64_t seed;
    double fraction;
    cli_list sets;
} args;

static const cli_option options[] = {
    {.name = "run-dir", .kind = CLI_STRING, .offset = offsetof(args, dir), .value = "DIR", .group = "Run", .help = "where it lives"},
    {.name = "resume", .kind = CLI_CHOICE, .offset = offsetof(args, resume), .choices = "auto|never", .fallback = "auto", .help = "go on"},
    {.name = "quiet", .letter = 'q', .kind = CLI_FLAG, .offset = offsetof(args, quiet), .help = "say nothing"},
    {.name = "tokens", .letter = 'n', .kind = CLI_INT, .offset = offsetof(args, tokens), .value = "N", .fallback = "32", .min = 1,
     .max = 1000, .group = "Text", .help = "how many"},
    {.name = "seed", .kind = CLI_UINT, .offset = offsetof(args, seed), .value = "N", .help = "of the draw"},
    {.name = "val-fraction", .kind = CLI_NUMBER, .offset = offsetof(args, fraction), .value = "F", .fallback = "0.01", .min = 0, .max = 1,
     .help = "held out"},
    {.name = "set", .kind = CLI_LIST, .offset = offsetof(args, sets), .value = "a.b=v", .help = "override"},
};

static moe_err run(const void *a, const cli_words *w)
{
    const args *x = a;
    printf("%s|%s|%lld|%d", x->resume, w->word[0], (long long)x->tokens, x->sets.n);
    return strcmp(w->word[0], "bad") == 0 ? moe_fail(MOE_E_DATA, "bad: found to be bad") : MOE_OK;
}

static const cli_command commands[] = {
    {"run", "FILE [OPTION]...", "run a file", "Exit codes: many.", options, sizeof options / sizeof options[0], sizeof(args), 1, 1, run},
    {"export", "DIR", "write it out", NULL, NULL, 0, 0, 1, 1, run},
};
static const cli_program program = {"moe-test", "1.2.3", "A program for tests.", commands, 2, NULL};

static moe_err parse(args *a, cli_words *w, const char **buf, int argc, char **argv)
{
    memset(a, 0, sizeof *a);
    return cli_parse(&commands[0], argc, argv, a, buf, w);
}

#define ARGV(...) (char *[]){__VA_ARGS__}
#define PARSE(...) parse(&a, &w, buf, (int)(sizeof(ARGV(__VA_ARGS__)) / sizeof(char *)), ARGV(__VA_ARGS__))

Test(cli, values_of_every_kind)
{
    args a;
    cli_words w;
    const char *buf[16];
    cr_assert_eq(PARSE("x.yaml"), MOE_OK);
    cr_expect_str_eq(a.resume, "auto");
    cr_expect_eq(a.tokens, 32);
    cr_expect_eq(a.fraction, 0.01);
    cr_assert_eq(PARSE("--set", "a.b=1", "x.yaml", "--resume=never", "-qn7", "--set=c=2", "--seed", "18446744073709551615", "--val", "0.5"), MOE_OK);
    cr_expect(a.quiet);
    cr_expect_eq(a.tokens, 7);
    cr_expect_eq(a.seed, UINT64_MAX);
    cr_expect_eq(a.fraction, 0.5);
    cr_assert_eq(a.sets.n, 2);
    cr_expect_str_eq(a.sets.item[1], "c=2");
    cr_expect_str_eq(w.word[0], "x.yaml");
    cli_args_free(&commands[0], &a);
    cr_assert_eq(PARSE("--", "--quiet"), MOE_OK);
    cr_expect_str_eq(w.word[0], "--quiet");
}

Test(cli, errors_name_the_option_and_the_nearest)
{
    args a;
    cli_words w;
    const char *buf[16];
    cr_assert_eq(PARSE("x", "--rundir", "d"), MOE_E_USAGE);
    cr_expect_str_eq(moe_error_text(), "unknown option --rundir; did you mean --run-dir?");
    cr_assert_eq(PARSE("x", "--tokens", "10k"), MOE_E_USAGE);
    cr_expect_str_eq(moe_error_text(), "--tokens: expected a whole number from 1 to 1000, got '10k'");
    cr_assert_eq(PARSE("x", "--tokens=0"), MOE_E_USAGE);
    cr_assert_eq(PARSE("x", "--resume", "maybe"), MOE_E_USAGE);
    cr_expect_str_eq(moe_error_text(), "--resume: expected auto|never, got 'maybe'");
    cr_assert_eq(PARSE("x", "--se", "1"), MOE_E_USAGE);
    cr_expect_str_eq(moe_error_text(), "option --se is ambiguous");
    cr_assert_eq(PARSE("x", "--quiet=1"), MOE_E_USAGE);
    cr_assert_eq(PARSE("x", "--run-dir"), MOE_E_USAGE);
    cr_expect_str_eq(moe_error_text(), "option --run-dir needs a value (DIR)");
    cr_assert_eq(PARSE("x", "-z"), MOE_E_USAGE);
    cr_assert_eq(PARSE("x", "y"), MOE_E_USAGE);
    cr_expect_str_eq(moe_error_text(), "unexpected argument 'y'");
    cr_assert_eq(PARSE("-q"), MOE_E_USAGE);
}

#define MAIN(...) cli_main(&program, (int)(sizeof(ARGV(__VA_ARGS__)) / sizeof(char *)), ARGV(__VA_ARGS__))

Test(cli, main_dispatches_and_returns_the_exit_code, .init = cr_redirect_stdout)
{
    cr_redirect_stderr();
    cr_expect_eq(MAIN("moe-test", "run", "good", "-n", "5"), 0);
    cr_expect_eq(MAIN("moe-test", "run", "bad"), 65);
    cr_expect_eq(MAIN("moe-test", "rnu", "good"), 64);
    cr_expect_eq(MAIN("moe-test"), 64);
    cr_expect_eq(MAIN("moe-test", "run"), 64);
    cr_expect_eq(MAIN("moe-test", "--version"), 0);
    fflush(stderr);
    char text[4096] = {0};
    FILE *f = cr_get_redirected_stderr();
    cr_assert_gt(fread(text, 1, sizeof text - 1, f), 0);
    cr_expect(strstr(text, "moe-test: bad: found to be bad\n"), "%s", text);
    cr_expect(strstr(text, "unknown command 'rnu'; did you mean 'run'?\nTry 'moe-test --help'."), "%s", text);
    cr_expect(strstr(text, "too few arguments: expected FILE [OPTION]...\nTry 'moe-test run --help'."), "%s", text);
}

Test(cli, help_is_grouped_and_shows_defaults, .init = cr_redirect_stdout)
{
    cr_assert_eq(MAIN("moe-test", "run", "--help"), 0);
    fflush(stdout);
    char text[4096] = {0};
    cr_assert_gt(fread(text, 1, sizeof text - 1, cr_get_redirected_stdout()), 0);
    cr_expect(strstr(text, "Usage: moe-test run FILE [OPTION]...\n"), "%s", text);
    cr_expect(strstr(text, "\nRun:\n      --run-dir DIR"), "%s", text);
    cr_expect(strstr(text, "\nText:\n  -n, --tokens N"), "%s", text);
    cr_expect(strstr(text, "--resume auto|never"), "%s", text);
    cr_expect(strstr(text, "how many (default: 32)"), "%s", text);
    cr_expect(strstr(text, "Common options:\n  -h, --help"), "%s", text);
}

Test(text, numbers_read_back_and_are_short)
{
    char s[TEXT_NUMBER];
    cr_expect_str_eq(text_double(s, 0.1), "0.1");
    cr_expect_str_eq(text_double(s, 3e-4), "0.0003");
    cr_expect_str_eq(text_double(s, 1.0 / 3), "0.3333333333333333");
    cr_expect_str_eq(text_double(s, -0.0), "-0");
    for (uint64_t i = 1; i < 2000; i++) {
        const uint64_t bits = i * 0x9E3779B97F4A7C15u;
        double x;
        memcpy(&x, &bits, sizeof x);
        if (isfinite(x))
            cr_assert_eq(strtod(text_double(s, x), NULL), x);
    }
    cr_expect_str_eq(text_count(s, -1234567), "-1,234,567");
    cr_expect_str_eq(text_count(s, 999), "999");
    cr_expect_str_eq(text_bytes(s, 1610612736.0), "1.5 GiB");
    cr_expect_str_eq(text_seconds(s, 65), "1:05");
    cr_expect_str_eq(text_seconds(s, 0.25), "250 ms");
}

Test(text, only_yaml_core_numbers)
{
    int64_t i;
    uint64_t u;
    double d;
    const char *const not_whole[] = {"", "-", "10k", "1.0", "1e3", " 1", "1 ", "8_192", "0x", "-0x1", "0o8", "9223372036854775808", "--1"};
    for (size_t k = 0; k < sizeof not_whole / sizeof not_whole[0]; k++)
        cr_expect_not(text_parse_int(not_whole[k], &i), "%s", not_whole[k]);
    cr_expect(text_parse_int("-9223372036854775808", &i) && i == INT64_MIN);
    cr_expect(text_parse_int("0x1F", &i) && i == 31);
    cr_expect(text_parse_int("0o17", &i) && i == 15);
    cr_expect(text_parse_int("010", &i) && i == 10);
    cr_expect(text_parse_uint("18446744073709551615", &u) && u == UINT64_MAX);
    cr_expect_not(text_parse_uint("-1", &u));
    const char *const not_number[] = {"", ".", "e5", "1e", "1e+", "nan", ".inf", "0x10", "1,5", "1e999", "1.5f"};
    for (size_t k = 0; k < sizeof not_number / sizeof not_number[0]; k++)
        cr_expect_not(text_parse_double(not_number[k], &d), "%s", not_number[k]);
    cr_expect(text_parse_double("3.0e-4", &d) && d == 3.0e-4);
    cr_expect(text_parse_double(".5", &d) && d == 0.5);
    cr_expect(text_parse_double("-2.", &d) && d == -2);
}

static const char *candidate(const void *ctx, int i) { return ((const char *const *)ctx)[i]; }

Test(text, nearest_spelling)
{
    static const char *const keys[] = {"steps", "seq_len", "warmup_steps", "lr", "clip_norm", NULL};
    cr_expect_str_eq(text_nearest("stpes", candidate, keys), "steps");
    cr_expect_str_eq(text_nearest("seqlen", candidate, keys), "seq_len");
    cr_expect_str_eq(text_nearest("warmup", candidate, keys), "warmup_steps");
    cr_expect_null(text_nearest("gradient_accumulation", candidate, keys));
    cr_expect_eq(text_distance("abcd", "abdc"), 1);
    cr_expect_eq(text_distance("Run-Dir", "run_dir"), 0);
}
