/* The table at the end of a run. A number that was not measured has no row. */
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "engine/report/live.h"

enum { NAME_COLUMN = 26, BAR = 30 }; /* columns */

static void row(text_buf *t, const char *name) { text_printf(t, "  %-*s", NAME_COLUMN, name); }

static void heading(text_buf *t, const char *name, bool color)
{
    text_printf(t, color ? "\n\033[1m%s\033[0m\n" : "\n%s\n", name); /* 1: bold */
}

static void time_row(text_buf *t, const char *name, double seconds, double total)
{
    char s[TEXT_NUMBER];
    row(t, name);
    text_printf(t, "%10s  %5.1f %%", text_seconds(s, seconds), seconds / total * 100);
    for (int i = 0; i < BAR && i < (int)(seconds / total * BAR + 0.5); i++)
        text_add(t, i ? "#" : "  #");
    text_add(t, "\n");
}

static void time_table(text_buf *t, const run_summary *s, bool color)
{
    double known = 0;
    if (!(s->seconds > 0))
        return;
    heading(t, "Where the time went", color);
    for (int i = 0; i < 16 && s->part[i].name; i++)
        if (isfinite(s->part[i].seconds)) {
            time_row(t, s->part[i].name, s->part[i].seconds, s->seconds);
            known += s->part[i].seconds;
        }
    if (s->seconds - known > 0.005 * s->seconds)
        time_row(t, "everything else", s->seconds - known, s->seconds);
    if (isfinite(s->stall_seconds))
        time_row(t, "(of it: waiting for SSD)", s->stall_seconds, s->seconds);
}

static void training_rows(text_buf *t, const run_summary *s)
{
    char a[TEXT_NUMBER], b[TEXT_NUMBER], c[TEXT_NUMBER];
    row(t, "trained");
    text_printf(t, "%s steps, %s tokens in %s", text_count(a, s->steps), text_count(b, s->tokens), text_seconds(c, s->seconds));
    if (s->seconds > 0)
        text_printf(t, ", %s tokens/s", text_count(a, (int64_t)((double)s->tokens / s->seconds + 0.5)));
    text_add(t, "\n");
    if (isfinite(s->first_loss) && isfinite(s->last_loss)) {
        row(t, "loss");
        text_printf(t, "%.4f at first, %.4f at last", s->first_loss, s->last_loss);
        if (isfinite(s->val_loss))
            text_printf(t, ", %.4f held out", s->val_loss);
        text_add(t, "\n");
    }
}

static void machine_rows(text_buf *t, const run_summary *s)
{
    char a[TEXT_NUMBER], b[TEXT_NUMBER];
    if (isfinite(s->gflops_per_second)) {
        row(t, "compute");
        text_printf(t, "%.1f GFLOP/s", s->gflops_per_second);
        if (isfinite(s->peak_gflops) && s->peak_gflops > 0)
            text_printf(t, ", %.0f %% of the measured peak of %.1f", s->gflops_per_second / s->peak_gflops * 100, s->peak_gflops);
        text_add(t, "\n");
    }
    if (s->ssd_read_bytes + s->ssd_write_bytes > 0) {
        row(t, "SSD");
        text_printf(t, "%s read, %s written", text_bytes(a, (double)s->ssd_read_bytes),
                    text_bytes(b, (double)s->ssd_write_bytes));
        if (s->spill_bytes)
            text_printf(t, ", %s of it activations", text_bytes(a, (double)s->spill_bytes));
        if (s->ssd_read_wasted_bytes)
            text_printf(t, ", %s read for nothing", text_bytes(a, (double)s->ssd_read_wasted_bytes));
        text_add(t, "\n");
    }
    if (isfinite(s->ssd_bytes_per_second)) {
        row(t, "SSD while busy");
        text_printf(t, "%.2f GB/s", s->ssd_bytes_per_second * 1e-9);
        if (isfinite(s->ssd_peak_bytes_per_second) && s->ssd_peak_bytes_per_second > 0)
            text_printf(t, ", %.0f %% of what the drive does (%.2f)",
                        s->ssd_bytes_per_second / s->ssd_peak_bytes_per_second * 100, s->ssd_peak_bytes_per_second * 1e-9);
        text_add(t, "\n");
    }
    if (s->peak_rss_bytes) {
        row(t, "memory");
        text_printf(t, "%s at most", text_bytes(a, (double)s->peak_rss_bytes));
        if (s->host_limit_bytes)
            text_printf(t, ", of %s allowed", text_bytes(b, (double)s->host_limit_bytes));
        text_add(t, "\n");
    }
}

void live_summary(live *l, const run_summary *s)
{
    text_buf t = {0};
    if (l->quiet)
        return;
    live_finish(l);
    time_table(&t, s, l->color);
    heading(&t, "What it amounts to", l->color);
    training_rows(&t, s);
    machine_rows(&t, s);
    if (!t.failed && t.used)
        (void)!write(STDERR_FILENO, t.data, t.used);
    text_free(&t);
}
