#include "engine/report/live.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "engine/base/cli.h"

enum { PARTS_MAX = 16, PART_BYTES = 48 };

/* "label value" pieces of a line, the most important first. */
typedef struct parts {
    const char *label[PARTS_MAX];
    char value[PARTS_MAX][PART_BYTES];
    int n;
} parts;

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

void live_open(live *l, int64_t planned, bool quiet)
{
    *l = (live){.quiet = quiet, .planned = planned, .val_loss = NAN};
    l->terminal = cli_is_terminal(STDERR_FILENO);
    l->color = cli_has_color(STDERR_FILENO);
    l->stamp[0] = now();
    l->stamps = 1;
}

static void part(parts *p, const char *label, const char *fmt, ...) MOE_PRINTF(3, 4);
static void part(parts *p, const char *label, const char *fmt, ...)
{
    va_list ap;
    if (p->n == PARTS_MAX)
        return;
    p->label[p->n] = label;
    va_start(ap, fmt);
    vsnprintf(p->value[p->n++], PART_BYTES, fmt, ap);
    va_end(ap);
}

/* Mean seconds of the last steps, everything between them included. NAN before the first. */
static double step_seconds(const live *l)
{
    const int64_t n = l->stamps < LIVE_WINDOW ? l->stamps : LIVE_WINDOW;
    if (n < 2)
        return NAN;
    return (l->stamp[(l->stamps - 1) % LIVE_WINDOW] - l->stamp[(l->stamps - n) % LIVE_WINDOW]) / (double)(n - 1);
}

static void add_ssd(const step_metrics *m, bool brief, parts *p)
{
    if (!isfinite(m->seconds) || m->seconds <= 0 || m->ssd_read_bytes + m->ssd_write_bytes == 0)
        return;
    const double read = (double)m->ssd_read_bytes / m->seconds * 1e-9, written = (double)m->ssd_write_bytes / m->seconds * 1e-9;
    if (brief)
        part(p, "SSD", "%.2f GB/s", read + written);
    else
        part(p, "SSD", "r %.2f w %.2f GB/s", read, written);
}

/* brief: for a line that must fit into a window. */
static void collect(const live *l, const step_metrics *m, bool brief, parts *p)
{
    char s[TEXT_NUMBER];
    const double seconds = step_seconds(l);
    p->n = 0;
    if (l->planned > 0)
        part(p, "step", "%lld/%lld", (long long)m->step, (long long)l->planned);
    else
        part(p, "step", "%lld", (long long)m->step);
    part(p, "loss", "%.4f", m->loss);
    if (m->tokens_per_second < 100)
        part(p, "", "%.1f tok/s", m->tokens_per_second);
    else if (isfinite(m->tokens_per_second))
        part(p, "", "%s tok/s", text_count(s, (int64_t)(m->tokens_per_second + 0.5)));
    if (l->planned > m->step && isfinite(seconds))
        part(p, "ETA", "%s", text_seconds(s, seconds * (double)(l->planned - m->step)));
    add_ssd(m, brief, p);
    if (isfinite(m->cache_hit_rate))
        part(p, "hit", "%.0f%%", m->cache_hit_rate * 100);
    if (isfinite(m->stall_seconds) && isfinite(m->seconds) && m->seconds > 0)
        part(p, "stall", "%.0f%%", m->stall_seconds / m->seconds * 100);
    const double val = brief ? l->val_loss : m->val_loss; /* the live line keeps the last one in sight */
    if (isfinite(val))
        part(p, "val", "%.4f", val);
    if (isfinite(m->lr))
        part(p, "lr", "%.3g", m->lr);
    if (isfinite(m->grad_norm))
        part(p, "norm", "%.3g", m->grad_norm);
    if (isfinite(m->gflops_per_second))
        part(p, "", "%.1f GFLOP/s", m->gflops_per_second);
}

static int part_width(const parts *p, int i)
{
    return (int)strlen(p->label[i]) + (*p->label[i] ? 1 : 0) + (int)strlen(p->value[i]);
}

/* As many parts as fit into `width` columns (0: all), two blanks apart where there is room. */
static void join(text_buf *t, const parts *p, int width, bool color)
{
    int wide = 0, column = 0;
    for (int i = 0; i < p->n; i++)
        wide += part_width(p, i) + (i ? 2 : 0);
    const int gap = width > 0 && wide > width ? 1 : 2;
    for (int i = 0; i < p->n; i++) {
        const int more = (i ? gap : 0) + part_width(p, i);
        if (width > 0 && column + more > width)
            break;
        text_printf(t, "%*s", i ? gap : 0, "");
        if (*p->label[i])
            text_printf(t, color ? "\033[2m%s\033[0m " : "%s ", p->label[i]); /* 2: dim */
        text_add(t, p->value[i]);
        column += more;
    }
}

/* stderr is not watched for errors: a closed terminal must not end a run. One write, so that lines of threads do not mix. */
static void put(const text_buf *t)
{
    if (!t->failed && t->used > 0)
        (void)!write(STDERR_FILENO, t->data, t->used);
}

/* Clears the live line when one stands there, prints `above` as a line of its own (NULL: none), draws the live line. */
static void redraw(live *l, bool stands, const char *above)
{
    text_buf t = {0};
    text_add(&t, stands ? "\r\033[K" : "");
    if (above)
        text_printf(&t, "%s\n", above);
    if (l->line.used)
        text_add(&t, l->line.data);
    put(&t);
    text_free(&t);
}

void live_step(live *l, const step_metrics *m)
{
    parts p;
    l->stamp[l->stamps++ % LIVE_WINDOW] = now();
    if (isfinite(m->val_loss))
        l->val_loss = m->val_loss;
    if (l->quiet)
        return;
    collect(l, m, l->terminal, &p);
    text_buf whole = {0};
    if (!l->terminal || isfinite(m->val_loss)) /* an evaluation stays readable when the live line has moved on */
        join(&whole, &p, l->terminal ? cli_width(STDERR_FILENO) - 1 : 0, l->color);
    const bool stands = l->line.used > 0;
    l->line.used = 0;
    if (l->terminal)
        join(&l->line, &p, cli_width(STDERR_FILENO) - 1, l->color);
    redraw(l, stands, whole.used ? whole.data : NULL);
    text_free(&whole);
}

void live_note(live *l, const char *line)
{
    if (!l->quiet)
        redraw(l, l->line.used > 0, line);
}

void live_finish(live *l)
{
    if (l->line.used)
        (void)!write(STDERR_FILENO, "\n", 1);
    l->line.used = 0;
}

void live_close(live *l)
{
    live_finish(l);
    text_free(&l->line);
}
