/* What people look at: metrics.jsonl with resume, the expert rows, TensorBoard events decoded again, the live line on a terminal. */
#include <criterion/criterion.h>
#include <dirent.h>
#include <fcntl.h>
#include <jansson.h>
#include <math.h>
#include <pty.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <signal.h>
#include <unistd.h>

#include "engine/report/files.h"

static char folder[64];

static void make_folder(void)
{
    strcpy(folder, "/tmp/moe-report-XXXXXX");
    cr_assert_not_null(mkdtemp(folder));
}

static void remove_folder(void)
{
    char path[512];
    DIR *d = opendir(folder);
    for (struct dirent *e; d && (e = readdir(d)) != NULL;) {
        snprintf(path, sizeof path, "%s/%s", folder, e->d_name);
        if (e->d_name[0] != '.')
            unlink(path);
    }
    if (d)
        closedir(d);
    rmdir(folder);
}

TestSuite(report, .init = make_folder, .fini = remove_folder);

static step_metrics metrics_of(int64_t step)
{
    static const int64_t rows[6] = {1, 2, 3, 40000, 0, 6};
    return (step_metrics){.step = step, .tokens = step * 8192, .loss = 5.0 / (double)step, .aux_loss = 1.25, .z_loss = 0.5, .val_loss = NAN,
                          .lr = 3e-4, .grad_norm = 1.0 / 3, .seconds = 2, .tokens_per_second = 4096, .rss_bytes = 1 << 30,
                          .ssd_read_bytes = 3000000000, .ssd_write_bytes = 1000000000, .ssd_read_wasted_bytes = 7, .stall_seconds = 0.5,
                          .cache_hit_rate = NAN, .expert_load_max_over_mean = 1.5, .gflops_per_second = 90, .forward_seconds = 0.75,
                          .backward_seconds = 1, .update_seconds = NAN, .checkpoint_seconds = NAN, .eval_seconds = NAN, .expert_rows = rows,
                          .layers = 2, .experts = 3};
}

static report *begin(int64_t resume_step)
{
    report *r;
    cr_assert_eq(report_open(&r, folder, resume_step, 100, true), MOE_OK, "%s", moe_error_text());
    return r;
}

static void write_steps(report *r, int64_t from, int64_t to)
{
    for (int64_t s = from; s <= to; s++) {
        const step_metrics m = metrics_of(s);
        cr_assert_eq(report_step(r, &m), MOE_OK, "%s", moe_error_text());
    }
}

static char *slurp(const char *name, size_t *bytes)
{
    char path[512];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *f = fopen(path, "rb");
    cr_assert_not_null(f, "%s", path);
    char *text = calloc(1, 1 << 20);
    *bytes = fread(text, 1, (1 << 20) - 1, f);
    fclose(f);
    return text;
}

static void append(const char *name, const char *text, size_t n)
{
    char path[512];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *f = fopen(path, "ab");
    fwrite(text, 1, n, f);
    fclose(f);
}

Test(report, a_line_has_every_field_and_reads_back)
{
    static const char *const fields[] = {"step", "tokens", "loss", "aux_loss", "z_loss", "lr", "grad_norm", "tokens_per_second", "rss_bytes",
                                         "ssd_read_bytes", "ssd_write_bytes", "ssd_read_wasted_bytes", "stall_seconds", "cache_hit_rate",
                                         "expert_load_max_over_mean", "gflops_per_second"};
    report *r = begin(-1);
    write_steps(r, 1, 1);
    step_metrics m = metrics_of(2);
    m.val_loss = 0.1 + 0.2;
    cr_assert_eq(report_step(r, &m), MOE_OK);
    report_close(r);
    size_t n;
    char *text = slurp("metrics.jsonl", &n), *second = strchr(text, '\n') + 1;
    json_t *o = json_loads(text, JSON_DISABLE_EOF_CHECK, NULL), *p = json_loads(second, 0, NULL);
    cr_assert(o && p, "%s", text);
    for (size_t i = 0; i < sizeof fields / sizeof fields[0]; i++)
        cr_expect_not_null(json_object_get(o, fields[i]), "%s", fields[i]);
    cr_expect_null(json_object_get(o, "val_loss"));
    cr_expect(json_is_null(json_object_get(o, "cache_hit_rate")));
    cr_expect_eq(json_real_value(json_object_get(p, "val_loss")), 0.1 + 0.2);
    cr_expect_eq(json_real_value(json_object_get(o, "grad_norm")), 1.0 / 3);
    cr_expect_eq(json_integer_value(json_object_get(o, "ssd_read_bytes")), 3000000000);
    cr_expect_eq(text[n - 1], '\n');
    json_decref(o);
    json_decref(p);
    free(text);
}

static int count_lines(void)
{
    size_t n;
    int lines = 0;
    char *text = slurp("metrics.jsonl", &n);
    for (const char *s = text; (s = strchr(s, '\n')) != NULL; s++)
        lines++;
    free(text);
    return lines;
}

Test(report, resume_removes_what_came_after_and_a_torn_line)
{
    report *r = begin(-1);
    write_steps(r, 1, 10);
    report_close(r);
    append("metrics.jsonl", "{\"step\":11,\"tok", 15);
    append("experts.bin", "torn", 4);
    size_t before_bytes, after_bytes, n;
    char *before = slurp("metrics.jsonl", &before_bytes);
    r = begin(7);
    cr_expect_eq(count_lines(), 7);
    char *after = slurp("metrics.jsonl", &after_bytes);
    cr_expect(memcmp(before, after, after_bytes) == 0, "kept lines changed");
    write_steps(r, 8, 9);
    report_close(r);
    cr_expect_eq(count_lines(), 9);
    char *rows = slurp("experts.bin", &n);
    const experts_header *h = (const experts_header *)rows;
    cr_assert_eq(n, sizeof *h + 9 * (8 + 6 * 4));
    cr_expect_eq(h->layers, 2);
    cr_expect_eq(h->experts, 3);
    uint64_t step;
    uint32_t routed;
    memcpy(&step, rows + n - 32, sizeof step);
    memcpy(&routed, rows + n - 32 + 8 + 3 * 4, sizeof routed);
    cr_expect_eq(step, 9);
    cr_expect_eq(routed, 40000);
    free(rows);
    free(before);
    free(after);
    r = begin(9);
    report_close(r);
    cr_expect_eq(count_lines(), 9);
    r = begin(0);
    report_close(r);
    cr_expect_eq(count_lines(), 0);
    r = begin(-1);
    write_steps(r, 1, 2);
    report_close(r);
    r = begin(-1);
    report_close(r);
    cr_expect_eq(count_lines(), 0);
}

Test(report, damage_in_the_middle_is_an_error)
{
    report *r = begin(-1);
    write_steps(r, 1, 1);
    append("metrics.jsonl", "nonsense\n", 9);
    write_steps(r, 2, 3);
    report_close(r);
    cr_expect_eq(report_open(&r, folder, 3, 100, true), MOE_E_DATA);
    cr_expect_null(r);
    cr_expect(strstr(moe_error_text(), "metrics.jsonl:2: expected a JSON object"), "%s", moe_error_text());
}

Test(report, a_folder_that_is_missing_cannot_be_created_in)
{
    report *r;
    cr_expect_eq(report_open(&r, "/nonexistent/run", -1, 1, true), MOE_E_CREATE);
    cr_expect_null(r);
}

Test(report, a_full_disk_is_an_error_and_leaves_no_torn_line)
{
    report *r = begin(-1);
    write_steps(r, 1, 2);
    signal(SIGXFSZ, SIG_IGN);
    size_t n, after;
    free(slurp("metrics.jsonl", &n));
    const struct rlimit limit = {n + 100, RLIM_INFINITY}; /* less than a line */
    cr_assert_eq(setrlimit(RLIMIT_FSIZE, &limit), 0);
    const step_metrics m = metrics_of(3);
    cr_expect_eq(report_step(r, &m), MOE_E_IO);
    free(slurp("metrics.jsonl", &after));
    cr_expect_eq(after, n);
    report_close(r);
}

/* --- TensorBoard, decoded again ------------------------------------------------------------------------------------------- */

static uint32_t crc32c_of(const uint8_t *p, size_t n)
{
    uint32_t table[256], crc = ~0u;
    for (uint32_t i = 0; i < 256; i++) {
        table[i] = i;
        for (int k = 0; k < 8; k++)
            table[i] = table[i] & 1 ? table[i] >> 1 ^ 0x82F63B78 : table[i] >> 1;
    }
    while (n--)
        crc = table[(crc ^ *p++) & 0xff] ^ crc >> 8;
    return ~crc;
}

static uint32_t masked(const uint8_t *p, size_t n)
{
    const uint32_t c = crc32c_of(p, n);
    return ((c >> 15) | (c << 17)) + 0xa282ead8u;
}

typedef struct field {
    int number, wire;
    uint64_t varint;
    const uint8_t *data; /* of bytes, double, float */
    size_t n;
} field;

static uint64_t varint(const uint8_t **p)
{
    uint64_t x = 0;
    for (int shift = 0;; shift += 7) {
        x |= (uint64_t)(**p & 0x7f) << shift;
        if (!(*(*p)++ & 0x80))
            return x;
    }
}

static bool next_field(const uint8_t **p, const uint8_t *end, field *f)
{
    if (*p >= end)
        return false;
    const uint64_t key = varint(p);
    *f = (field){.number = (int)(key >> 3), .wire = (int)(key & 7)};
    if (f->wire == 0) {
        f->varint = varint(p);
        return true;
    }
    f->n = f->wire == 2 ? varint(p) : f->wire == 1 ? 8 : 4;
    f->data = *p;
    *p += f->n;
    cr_assert_leq(*p, end);
    return true;
}

static float scalar_of(const field *summary, const char *tag)
{
    const uint8_t *p = summary->data;
    for (field value; next_field(&p, summary->data + summary->n, &value);) {
        const uint8_t *q = value.data;
        field name = {0}, x = {0};
        next_field(&q, value.data + value.n, &name);
        next_field(&q, value.data + value.n, &x);
        float out;
        cr_assert(name.number == 1 && x.number == 2 && x.wire == 5);
        memcpy(&out, x.data, sizeof out);
        if (name.n == strlen(tag) && memcmp(name.data, tag, name.n) == 0)
            return out;
    }
    return NAN;
}

static char *events_file(size_t *n)
{
    DIR *d = opendir(folder);
    char name[300] = "";
    for (struct dirent *e; (e = readdir(d)) != NULL;)
        if (strncmp(e->d_name, "events.out.tfevents.", 20) == 0)
            snprintf(name, sizeof name, "%s", e->d_name);
    closedir(d);
    cr_assert(*name);
    return slurp(name, n);
}

Test(report, events_decode)
{
    cr_assert_eq(crc32c_of((const uint8_t *)"123456789", 9), 0xE3069283u);
    report *r = begin(4);
    write_steps(r, 5, 6);
    report_close(r);
    size_t n, at = 0;
    int events = 0;
    char *file = events_file(&n);
    while (at < n) {
        const uint8_t *p = (const uint8_t *)file + at;
        uint64_t length;
        uint32_t crc, data_crc;
        memcpy(&length, p, 8);
        memcpy(&crc, p + 8, 4);
        cr_assert_leq(at + 16 + length, n);
        memcpy(&data_crc, p + 12 + length, 4);
        cr_expect_eq(crc, masked(p, 8));
        cr_expect_eq(data_crc, masked(p + 12, length));
        const uint8_t *q = p + 12, *end = q + length;
        field wall, step, body;
        cr_assert(next_field(&q, end, &wall) && wall.number == 1 && wall.wire == 1);
        cr_assert(next_field(&q, end, &step) && step.number == 2 && step.wire == 0);
        cr_assert(next_field(&q, end, &body) && body.wire == 2);
        if (events == 0) {
            cr_expect(body.number == 3 && body.n == 13 && memcmp(body.data, "brain.Event:2", 13) == 0);
        } else if (events == 1) {
            cr_expect(body.number == 7 && step.varint == 5);
        } else {
            cr_expect(body.number == 5);
            cr_expect_eq(step.varint, (uint64_t)(events + 3));
            cr_expect_eq(scalar_of(&body, "loss/train"), (float)(5.0 / (events + 3)));
            cr_expect_eq(scalar_of(&body, "tiers/ssd_read_bytes"), 3e9f);
            cr_expect(isnan(scalar_of(&body, "loss/val")));
        }
        at += 16 + length;
        events++;
    }
    cr_expect_eq(events, 4);
    free(file);
}

/* --- stderr --------------------------------------------------------------------------------------------------------------- */

/* What a run of three steps, a note and the table write to a stderr of this kind. */
static void show(int fd, const char *term, char *out, size_t size, int read_fd)
{
    const int saved = dup(STDERR_FILENO);
    report *r;
    setenv("TERM", term, 1);
    cr_assert_geq(dup2(fd, STDERR_FILENO), 0);
    const moe_err rc = report_open(&r, folder, -1, 100, false);
    step_metrics m = metrics_of(1);
    m.cache_hit_rate = 0.71;
    bool fine = rc == MOE_OK && report_step(r, &m) == MOE_OK;
    report_note(r, "io_uring is forbidden here, using pread");
    m = metrics_of(2);
    m.val_loss = 3.25;
    fine = fine && report_step(r, &m) == MOE_OK;
    m = metrics_of(3);
    fine = fine && report_step(r, &m) == MOE_OK;
    const run_summary s = {.steps = 2, .tokens = 16384, .seconds = 100, .part = {{"forward", 30}, {"backward", 60}, {"update", NAN}},
                           .ssd_read_bytes = 5ull << 30, .ssd_write_bytes = 1ull << 30, .stall_seconds = 10, .gflops_per_second = 90,
                           .peak_gflops = 180, .ssd_bytes_per_second = 9e8, .ssd_peak_bytes_per_second = 1e9, .peak_rss_bytes = 1ull << 30,
                           .host_limit_bytes = 3ull << 29, .first_loss = 5, .last_loss = 2.5, .val_loss = 3.25};
    report_summary(r, &s);
    report_close(r);
    dup2(saved, STDERR_FILENO);
    close(saved);
    cr_assert(fine, "%s", moe_error_text());
    fcntl(read_fd, F_SETFL, O_NONBLOCK);
    size_t n = 0;
    for (ssize_t got; n < size - 1 && (got = read(read_fd, out + n, size - 1 - n)) > 0;)
        n += (size_t)got;
    out[n] = '\0';
}

Test(report, not_on_a_terminal_one_line_a_step)
{
    char out[16384];
    int pipes[2];
    cr_assert_eq(pipe(pipes), 0);
    show(pipes[1], "xterm", out, sizeof out, pipes[0]);
    cr_expect_null(strchr(out, '\r'), "%s", out);
    cr_expect_null(strchr(out, '\033'), "%s", out);
    cr_expect_eq(strncmp(out, "step 1/100  loss 5.0000  4,096 tok/s  ", 38), 0, "%s", out);
    cr_expect(strstr(out, "  SSD r 1.50 w 0.50 GB/s  hit 71%  stall 25%"), "%s", out);
    cr_expect(strstr(out, "\nio_uring is forbidden here, using pread\nstep 2/100 "), "%s", out);
    cr_expect(strstr(out, "val 3.2500"), "%s", out);
    cr_expect_null(strstr(strstr(out, "val 3.2500") + 1, "val 3.2500"), "%s", out);
    cr_expect_null(strstr(out, " \n"), "%s", out);
    cr_expect(strstr(out, "\nWhere the time went\n  forward "), "%s", out);
    cr_expect_null(strstr(out, "update"), "%s", out);
    cr_expect(strstr(out, "everything else               10.0 s   10.0 %  ###\n"), "%s", out);
    cr_expect(strstr(out, "90.0 GFLOP/s, 50 % of the measured peak of 180.0\n"), "%s", out);
    cr_expect(strstr(out, "0.90 GB/s, 90 % of what the drive does (1.00)\n"), "%s", out);
    cr_expect(strstr(out, "1.0 GiB at most, of 1.5 GiB allowed\n"), "%s", out);
    close(pipes[0]);
    close(pipes[1]);
}

/* Length of the longest thing between two \r or \n, escapes left out. */
static int widest(const char *out)
{
    int best = 0, column = 0;
    for (const char *p = out; *p; p++) {
        if (*p == '\033') {
            while (*p && !((*p >= 'A' && *p <= 'Z') || (*p >= 'a' && *p <= 'z')))
                p++;
            continue;
        }
        column = *p == '\r' || *p == '\n' ? 0 : column + 1;
        best = column > best ? column : best;
    }
    return best;
}

Test(report, on_a_terminal_one_live_line_that_fits)
{
    static const int width[] = {120, 80, 40, 10};
    for (size_t i = 0; i < 4; i++) {
        char out[16384];
        int controller, terminal;
        const struct winsize w = {.ws_row = 24, .ws_col = (unsigned short)width[i]};
        if (openpty(&controller, &terminal, NULL, NULL, &w) != 0)
            cr_skip_test("no pseudo-terminal can be had here");
        unsetenv("NO_COLOR");
        show(terminal, "xterm", out, sizeof out, controller);
        char *table = strstr(out, "Where the time went");
        cr_assert_not_null(table, "%s", out);
        char *note = strstr(out, "\r\033[Kio_uring is forbidden here, using pread\r\n");
        cr_expect((note != NULL) == (width[i] > 10), "%s", out);
        cr_expect((strstr(out, "\033[2mloss\033[0m") != NULL) == (width[i] > 30), "%s", out);
        *table = '\0';
        if (width[i] >= 80) { /* all that matters fits the usual window */
            cr_expect_lt(widest(out), width[i], "%s", out);
            cr_expect(strstr(out, "\033[2mhit\033[0m 71%") && strstr(out, "\033[2mstall\033[0m 25%"), "%s", out);
        }
        if (width[i] == 40)
            cr_expect_leq(widest(out), 39, "%d: %s", widest(out), out);
        close(controller);
        close(terminal);
    }
}

Test(report, no_color_and_dumb_terminals)
{
    char out[16384];
    int controller, terminal;
    if (openpty(&controller, &terminal, NULL, NULL, NULL) != 0)
        cr_skip_test("no pseudo-terminal can be had here");
    setenv("NO_COLOR", "1", 1);
    show(terminal, "xterm", out, sizeof out, controller);
    cr_expect_null(strstr(out, "\033[2m"), "%s", out);
    cr_expect_null(strstr(out, "\033[1m"), "%s", out);
    cr_expect(strstr(out, "\r\033[K"), "%s", out);
    unsetenv("NO_COLOR");
    show(terminal, "dumb", out, sizeof out, controller);
    cr_expect_null(strchr(out, '\033'), "%s", out);
    close(controller);
    close(terminal);
}
