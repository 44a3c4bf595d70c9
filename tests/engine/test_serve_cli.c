/* moe-serve as a user starts it: what goes to stdout, what to stderr, and the exit status; texts from small models at rest. */
#include <criterion/criterion.h>
#include <glob.h>
#include <jansson.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

typedef struct outcome {
    char out[1 << 17];
    int status;
} outcome;

static char cache[64]; /* the user's cache folder */

static void make_cache(void)
{
    snprintf(cache, sizeof cache, "/tmp/moe-serve-cache-XXXXXX");
    cr_assert_not_null(mkdtemp(cache));
    cr_assert_eq(setenv("XDG_CACHE_HOME", cache, 1), 0);
}

static void remove_cache(void)
{
    char command[96];
    snprintf(command, sizeof command, "rm -rf %s", cache);
    cr_assert_eq(system(command), 0);
}

TestSuite(serve_cli, .init = make_cache, .fini = remove_cache);

/* Runs moe-serve with these words in a shell; stderr follows stdout when `both`. */
static void run(outcome *o, const char *words, bool both)
{
    char command[4096];
    const char *pipe = strchr(words, '|'); /* what comes before it feeds stdin */
    snprintf(command, sizeof command, "%.*s %s %s 2>%s", pipe ? (int)(pipe + 1 - words) : 0, words, MOE_SERVE_PROGRAM, pipe ? pipe + 1 : words,
             both ? "&1" : "/dev/null");
    FILE *f = popen(command, "r");
    cr_assert_not_null(f);
    o->out[fread(o->out, 1, sizeof o->out - 1, f)] = '\0';
    const int status = pclose(f);
    o->status = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static void expect(const char *words, int status, const char *text)
{
    static outcome o;
    run(&o, words, true);
    cr_assert_eq(o.status, status, "%s: exit status %d, expected %d: %s", words, o.status, status, o.out);
    cr_assert_not_null(strstr(o.out, text), "%s: \"%s\" is not in: %s", words, text, o.out);
}

Test(serve_cli, help_and_mistakes)
{
    expect("--help", 0, "replay");
    expect("--version", 0, "moe-serve");
    expect("", 64, "moe-serve");
    expect("replya x", 64, "replay");
    expect("replay --help", 0, "--slots");
    expect("replay", 64, "TRACE");
    expect("replay /nonexistent", 64, "--slots");
    expect("replay /nonexistent --slots 4", 66, "/nonexistent");
    expect("replay tests/fixtures/traces/README.md --slots 4", 65, "README.md");
}

Test(serve_cli, replay_of_a_small_trace)
{
    static outcome o;
    char path[] = "/tmp/moe_serve_trace_XXXXXX", words[256];
    const int fd = mkstemp(path);
    cr_assert_geq(fd, 0);
    FILE *f = fdopen(fd, "w");
    for (int t = 0; t < 8; t++) /* two experts in turn: one slot never hits, two always do after the first quarter */
        fprintf(f, "{\"tok\": %d, \"layers\": [[%d]]}\n", t, t % 2);
    fclose(f);
    snprintf(words, sizeof words, "replay %s --slots 2 --policy lru --json", path);
    run(&o, words, false);
    cr_assert_eq(o.status, 0, "%s", o.out);
    cr_assert_eq(o.out[0], '{', "%s", o.out);
    cr_assert_not_null(strstr(o.out, "lru"), "%s", o.out);
    snprintf(words, sizeof words, "replay %s --slots 2 --policy best", path);
    expect(words, 78, "lru");
    unlink(path);
}

/* --- generate: models of 89 tokens, so the first 89 bytes are its alphabet -------------------------------------------------------- */

#define OLMOE "generate tests/fixtures/serve/olmoe --tokenizer bytes --ignore-eos -q "
#define LLAMA "generate tests/fixtures/serve/llama --tokenizer bytes --ignore-eos -q "

/* The texts of a --json run, one after the other, with their token ids and ends. */
static char *texts_of(const char *words)
{
    static outcome o;
    run(&o, words, false);
    cr_assert_eq(o.status, 0, "%s: %d: %s", words, o.status, o.out);
    json_t *root = json_loads(o.out, JSON_ALLOW_NUL, NULL), *texts = json_object_get(root, "texts"), *text;
    cr_assert_gt(json_array_size(texts), 0, "%s: %s", words, o.out);
    char *all = calloc(1, sizeof o.out);
    size_t i;
    json_array_foreach(texts, i, text)
    {
        char *ids = json_dumps(json_object_get(text, "tokens"), JSON_COMPACT);
        strcat(strcat(strcat(all, ids), json_string_value(json_object_get(text, "finish_reason"))), "\n");
        free(ids);
    }
    json_decref(root);
    return all;
}

static void expect_same_texts(const char *a, const char *b)
{
    char *x = texts_of(a), *y = texts_of(b);
    cr_assert_str_eq(x, y, "%s\n%s", a, b);
    free(x);
    free(y);
}

Test(serve_cli, the_same_texts_at_any_memory_and_in_any_company)
{
    static const char base[] = OLMOE "--prompt 'HELLO, 1 2 3 4 5 6 7 8 9' --prompt '42' --max-tokens 24 --streams 3 --json --seed 7";
    static const char *const other[] = {" --host-memory 64M --policy lru", " --parallel 1", " --parallel 4 --chunk 5", " --threads 1", " --threads 3 --backend ref"};
    for (size_t i = 0; i < sizeof other / sizeof *other; i++) {
        char words[1024];
        snprintf(words, sizeof words, "%s%s", base, other[i]);
        expect_same_texts(base, words);
    }
}

Test(serve_cli, one_stream_is_the_first_of_many_and_stdin_is_a_prompt)
{
    char *one = texts_of(OLMOE "--prompt 'HI 1' --max-tokens 12 --json"), *many = texts_of(OLMOE "--prompt 'HI 1' --max-tokens 12 --json --streams 4");
    cr_assert_eq(strncmp(one, many, strlen(one)), 0, "%s%s", one, many);
    cr_assert_neq(strcmp(one, many), 0);
    free(one);
    free(many);
    expect_same_texts("printf 'HI 1' |" LLAMA "--prompt - --json", LLAMA "--prompt 'HI 1' --json");
    expect_same_texts(LLAMA "--prompt-tokens 72,73 --json", LLAMA "--prompt HI --json");
}

Test(serve_cli, what_is_printed_is_the_text)
{
    static outcome plain, many;
    run(&plain, LLAMA "--prompt HI --max-tokens 16 --stop ZZZZZZ", false);
    cr_assert_eq(plain.status, 0);
    cr_assert_eq(plain.out[strlen(plain.out) - 1], '\n');
    run(&many, LLAMA "--prompt HI --max-tokens 16 --streams 2", false);
    cr_assert_not_null(strstr(many.out, plain.out), "%s\n%s", many.out, plain.out);
    cr_assert_not_null(strstr(many.out, "=== prompt 1, stream 2: length"), "%s", many.out);
    run(&many, LLAMA "--prompt HI --max-tokens 3 --json --logprobs 2 --logit-bias 65=100 --temperature 0", false);
    cr_assert_not_null(strstr(many.out, "\"text\": \"AAA\""), "%s", many.out);
    cr_assert_not_null(strstr(many.out, "logprob"), "%s", many.out);
    run(&many, LLAMA "--prompt HI --max-tokens 30 --json --logit-bias 65=100 --temperature 0 --stop AAAA", false);
    cr_assert_not_null(strstr(many.out, "\"finish_reason\": \"stop\""), "%s", many.out);
    cr_assert_not_null(strstr(many.out, "\"text\": \"\""), "%s", many.out);
}

Test(serve_cli, mistakes_of_generate_have_their_exit_codes)
{
    expect("generate /nonexistent --prompt x", 66, "/nonexistent");
    expect("generate tests/fixtures/serve/llama --prompt x", 66, "--tokenizer");
    expect(LLAMA, 64, "--prompt");
    expect(LLAMA "--prompt ''", 64, "no token");
    expect(LLAMA "--prompt x", 65, "vocabulary of 89");
    expect(LLAMA "--prompt-tokens 1,x", 64, "--prompt-tokens");
    expect(LLAMA "--prompt HI --max-tokens 1000", 64, "positions");
    expect(LLAMA "--prompt HI --logit-bias 5", 64, "ID=BIAS");
    expect(LLAMA "--prompt HI --logit-bias 99=1", 64, "vocabulary");
    expect(LLAMA "--prompt HI --top-p 2", 64, "top-p");
    expect(LLAMA "--prompt HI --stop ''", 64, "stop");
    expect(LLAMA "--prompt HI --host-memory 1M", 78, "");
    expect(LLAMA "--prompt HI --host-memory many", 64, "many");
    expect(LLAMA "--prompt HI --logprobs 3", 64, "--json");
    expect(OLMOE "--prompt HI --policy best", 78, "lru");
    expect("bench tests/fixtures/serve/llama --streams 1,x", 64, "--streams");
    expect("logits tests/fixtures/serve/llama --tokens 1,2", 64, "--out");
}

static bool catches(pid_t pid, int signal_number)
{
    char path[64], line[256];
    unsigned long long mask = 0;
    snprintf(path, sizeof path, "/proc/%d/status", (int)pid);
    FILE *f = fopen(path, "r");
    while (f != NULL && fgets(line, sizeof line, f) != NULL)
        sscanf(line, "SigCgt: %llx", &mask);
    if (f != NULL)
        fclose(f);
    return mask >> (signal_number - 1) & 1;
}

Test(serve_cli, a_signal_ends_it_with_its_exit_code, .timeout = 60)
{
    int in[2], status;
    cr_assert_eq(pipe(in), 0);
    const pid_t pid = fork();
    if (pid == 0) { /* waits for its prompt for ever */
        dup2(in[0], STDIN_FILENO);
        close(in[1]);
        execl(MOE_SERVE_PROGRAM, "moe-serve", "generate", "tests/fixtures/serve/llama", "--tokenizer", "bytes", "--prompt", "-", "-q", (char *)NULL);
        _exit(127);
    }
    while (!catches(pid, SIGINT) && waitpid(pid, &status, WNOHANG) == 0)
        usleep(1000);
    cr_assert_eq(kill(pid, SIGINT), 0);
    while (waitpid(pid, &status, WNOHANG) == 0) { /* a signal between the look and the read asks again: the second one leaves at once */
        usleep(50000);
        kill(pid, SIGINT);
    }
    cr_assert(WIFEXITED(status) && WEXITSTATUS(status) == 75, "status 0x%x", status);
    close(in[0]);
    close(in[1]);
}

/* Of the first text; new. */
static json_t *tokens_of(const outcome *o)
{
    json_t *root = json_loads(o->out, 0, NULL), *tokens = json_object_get(json_array_get(json_object_get(root, "texts"), 0), "tokens");
    cr_assert_gt(json_array_size(tokens), 0, "%s", o->out);
    json_incref(tokens);
    json_decref(root);
    return tokens;
}

static int hot_files(void)
{
    char pattern[96];
    glob_t g;
    snprintf(pattern, sizeof pattern, "%s/moe-serve/*.hot", cache);
    const int rc = glob(pattern, 0, NULL, &g), n = rc == 0 ? (int)g.gl_pathc : 0;
    globfree(&g);
    return n;
}

/* The resident experts are remembered, one file a model; they change no text, and neither does a file that is damaged. */
Test(serve_cli, remembers_the_hot_experts)
{
    static outcome first, again;
    const char *words = "generate tests/fixtures/serve/olmoe --prompt-tokens 1,2,3 --tokenizer bytes --max-tokens 8 --temperature 0 --ignore-eos --json -q";
    char command[160];
    snprintf(command, sizeof command, "%s --no-hot", words);
    run(&first, command, false);
    cr_assert_eq(first.status, 0, "%s", first.out);
    cr_assert_eq(hot_files(), 0);
    for (int i = 0; i < 3; i++) {
        run(&again, words, false);
        cr_assert_eq(again.status, 0, "%s", again.out);
        json_t *a = tokens_of(&first), *b = tokens_of(&again);
        cr_assert(json_equal(a, b), "%s against %s", again.out, first.out);
        json_decref(a), json_decref(b);
        cr_assert_eq(hot_files(), 1);
        snprintf(command, sizeof command, "for f in %s/moe-serve/*.hot; do echo damaged >$f; done", cache);
        if (i == 1)
            cr_assert_eq(system(command), 0);
    }
}

/* Not killed by a signal: 73 or 74, as on a full disk. */
Test(serve_cli, a_file_past_the_size_limit_is_an_error)
{
    char command[512];
    snprintf(command, sizeof command, "ulimit -f 4; exec %s logits tests/fixtures/serve/olmoe --out %s/x.npy 2>/dev/null --tokens %s", MOE_SERVE_PROGRAM, cache,
             "1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31,32,33,34,35,36,37,38,39,40");
    const int status = system(command);
    cr_assert(WIFEXITED(status) && WEXITSTATUS(status) == 74, "status %x", (unsigned)status);
}

Test(serve_cli, more_streams_than_a_step_has_tokens)
{
    expect("bench tests/fixtures/serve/olmoe --streams 513", 64, "1 to 512");
}

/* A copy of a fixture's model in the cache folder, changed by a shell command that runs in it. */
static const char *changed_model(const char *fixture, const char *change)
{
    static char path[96];
    char command[512];
    snprintf(path, sizeof path, "%s/model", cache);
    snprintf(command, sizeof command, "rm -rf %s && cp -r tests/fixtures/serve/%s %s && cd %s && %s", path, fixture, path, path, change);
    cr_assert_eq(system(command), 0, "%s", command);
    return path;
}

/* Of a text that would go on for minutes the beginning is there, in whole characters and with an end of line; the second half never comes. */
Test(serve_cli, a_signal_while_it_writes_leaves_the_text_so_far, .timeout = 60)
{
    static char text[1 << 20];
    const char *path = changed_model("llama", "sed -i 's/\"max_position_embeddings\": 256/\"max_position_embeddings\": 200000/' config.json");
    int out[2], status;
    size_t n = 0;
    cr_assert_eq(pipe(out), 0);
    const pid_t pid = fork();
    if (pid == 0) {
        dup2(out[1], STDOUT_FILENO);
        close(out[0]);
        execl(MOE_SERVE_PROGRAM, "moe-serve", "generate", path, "--tokenizer", "bytes", "--prompt", "HI", "--max-tokens", "150000", "--ignore-eos", "-q", "--no-hot",
              (char *)NULL);
        _exit(127);
    }
    close(out[1]);
    for (ssize_t got; (got = read(out[0], text + n, sizeof text - 1 - n)) > 0;) {
        if (n == 0)
            cr_assert_eq(kill(pid, SIGINT), 0);
        n += (size_t)got;
    }
    close(out[0]);
    cr_assert_eq(waitpid(pid, &status, 0), pid);
    cr_assert(WIFEXITED(status) && WEXITSTATUS(status) == 75, "status 0x%x", status);
    cr_assert(n > 1 && n < 150000 && text[n - 1] == '\n', "%zu bytes", n);
}

Test(serve_cli, weights_that_are_no_numbers_are_an_error)
{
    char words[256];
    /* 64 NaN at the end of the last tensor */
    snprintf(words, sizeof words, "generate %s --tokenizer bytes --prompt HI --max-tokens 4 -q",
             changed_model("llama", "for f in model-*.safetensors; do truncate -s -256 $f && for i in $(seq 64); do printf '\\000\\000\\300\\177'; done >>$f; done"));
    expect(words, 70, "the logit of token 0 after 2 tokens is nan");
    snprintf(words, sizeof words, "logits %s/model --tokens 1,2 --out %s/logits.npy", cache, cache);
    expect(words, 70, "of token 0 is no finite number");
}

/* In one file, as a log has it: first the whole text, then the line about it. */
Test(serve_cli, figures_follow_the_text)
{
    static outcome o;
    run(&o, "generate tests/fixtures/serve/llama --tokenizer bytes --ignore-eos --prompt HI --max-tokens 8 --temperature 0", true);
    cr_assert_eq(o.status, 0, "%s", o.out);
    const char *at = strstr(o.out, "2 prompt tokens,");
    cr_assert(at != NULL && at > o.out + 8 && at[-1] == '\n' && strchr(at, '\n')[1] == '\0', "%s", o.out);
}

/* A name that is no text: printed with marks in place of its bytes. */
Test(serve_cli, a_path_that_is_no_text)
{
    static outcome o;
    char words[256];
    changed_model("llama", "mv ../model \"$(printf '../mod\\377el')\"");
    snprintf(words, sizeof words, "generate \"$(printf '%s/mod\\377el')\" --tokenizer bytes --prompt HI --max-tokens 2 --json -q", cache);
    run(&o, words, false);
    cr_assert_eq(o.status, 0, "%d: %s", o.status, o.out);
    json_t *root = json_loads(o.out, 0, NULL);
    cr_assert_not_null(root, "%s", o.out);
    cr_assert_not_null(strstr(json_string_value(json_object_get(root, "model")), "/mod\xEF\xBF\xBD" "el"), "%s", o.out);
    json_decref(root);
}
