/* moe-serve in a cgroup of as little memory as it asks for: prompts and texts are computed to their end, nothing is killed, and not a byte of
 * the output differs. The model is larger than the limit: one small dense model, upcycled to many experts.
 * What may not be set up here (cgroups) is skipped and said. */
#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>

#define PROMPT /* the model has 89 tokens: bytes up to 'X' */                                                                            \
    "A PROMPT OF MAN@ TOKENS, SO THAT HALF THE EXPERTS OF A LA@ER ARE WANTED AT ONCE, AND MOST OF THEM HAVE NO ROOM BESIDE ONE ANOTHER: " \
    "NEITHER IN THIS LA@ER NOR IN THE NEXT"

static char folder[64];

static void make_model(void)
{
    char command[512];
    snprintf(folder, sizeof folder, "/tmp/moe-serve-limits-XXXXXX");
    cr_assert_not_null(mkdtemp(folder));
    cr_assert_eq(setenv("XDG_CACHE_HOME", folder, 1), 0);
    snprintf(command, sizeof command, "%s upcycle tests/fixtures/serve/llama --out %s/model --experts 2560 --top-k 8 --noise 0.2 --dtype f32 >%s/log 2>&1",
             MOE_MODEL_PROGRAM, folder, folder);
    cr_assert_eq(system(command), 0, "see %s/log", folder);
}

static void remove_model(void)
{
    char command[96];
    snprintf(command, sizeof command, "rm -rf %s", folder);
    cr_assert_eq(system(command), 0);
}

TestSuite(serve_limits, .init = make_model, .fini = remove_model);

/* The output of moe-serve, which must end well; malloc'ed. before: what runs it. */
static char *output(const char *before, const char *words)
{
    char command[4096];
    const size_t most = 1 << 20;
    char *text = calloc(1, most);
    snprintf(command, sizeof command, "%s %s %s 2>%s/log", before, MOE_SERVE_PROGRAM, words, folder);
    FILE *f = popen(command, "r");
    cr_assert(f != NULL && text != NULL);
    cr_assert_lt(fread(text, 1, most - 1, f), most - 1);
    const int status = pclose(f);
    cr_assert(WIFEXITED(status) && WEXITSTATUS(status) == 0, "%s: status %#x, see %s/log", command, status, folder);
    return text;
}

/* MiB that these words need at least, as the refusal of one MiB names it, rounded up; and two: what a process holds before it plans varies
 * from start to start. */
static long least_mib(const char *words)
{
    char command[4096], told[2048] = "";
    double mib = 0;
    snprintf(command, sizeof command, "%s %s --host-memory 1MiB 2>&1", MOE_SERVE_PROGRAM, words);
    FILE *f = popen(command, "r");
    cr_assert_not_null(f);
    told[fread(told, 1, sizeof told - 1, f)] = '\0';
    pclose(f);
    const char *at = strstr(told, "at least ");
    cr_assert(at != NULL && sscanf(at, "at least %lf MiB", &mib) == 1, "%s", told);
    return (long)mib + 3;
}

static void in_cgroup(const char *words)
{
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
    cr_skip("the shadow memory of a sanitizer counts too\n");
#endif
    char before[256], report[128], kind[16] = "";
    long peak = 0, kills = -1;
    const long mib = least_mib(words);
    struct stat st;
    snprintf(report, sizeof report, "%s/model/model.safetensors", folder);
    cr_assert(stat(report, &st) == 0 && st.st_size > 2 * (mib << 20), "the model is too small for this");
    snprintf(report, sizeof report, "%s/report", folder);
    char *expected = output("", words);
    snprintf(before, sizeof before, "LIMIT_REPORT=%s bench/demo/limit.sh %ld", report, mib);
    char *got = output(before, words); /* without --host-memory: the cgroup says it */
    FILE *f = fopen(report, "r");
    cr_assert(f != NULL && fscanf(f, "%15s %ld %ld", kind, &peak, &kills) == 3);
    fclose(f);
    if (strcmp(kind, "rlimit") == 0)
        cr_skip("no cgroup may be made here\n");
    cr_assert_eq(kills, 0);
    cr_assert_leq(peak, mib);
    cr_assert_str_eq(got, expected);
    cr_assert_gt(strlen(got), 60);
    free(got);
    free(expected);
}

static void generates(const char *options)
{
    char words[2048];
    snprintf(words, sizeof words, "generate %s/model --tokenizer bytes --ignore-eos -q --prompt '%s' %s", folder, PROMPT, options);
    in_cgroup(words);
}

Test(serve_limits, a_long_prompt_and_one_text) { generates("--max-tokens 64 --temperature 0"); }

Test(serve_limits, six_texts_together) { generates("--max-tokens 40 --streams 6 --seed 5"); }
