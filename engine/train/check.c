/* moe-train check: the plan in words and figures, before anything runs. */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "engine/plan/machine.h"
#include "engine/plan/traffic.h"
#include "engine/train/commands.h"

typedef struct rates {
    double flops, read, write; /* per second; 0: not measured */
} rates;

/* The nearest folder of the path that exists: the disk it stands for. */
static void existing_folder(char *path)
{
    struct stat st;
    while (stat(path, &st) != 0 || !S_ISDIR(st.st_mode)) {
        char *slash = strrchr(path, '/');
        if (slash == NULL) {
            strcpy(path, ".");
            return;
        }
        slash[slash == path ? 1 : 0] = '\0';
        if (strcmp(path, "/") == 0)
            return;
    }
}

static moe_err measure(const train_config *c, const train_plan *p, const char *dir, rates *r)
{
    moe_pool *pool = NULL;
    io *disk = NULL;
    const moe_backend *be;
    char note[512];
    moe_err rc;
    TRY(moe_backend_find(&be, c->backend));
    TRY(moe_pool_open(&pool, p->threads, KERNEL_SCRATCH_BYTES));
    moe_stream s = {.pool = pool};
    TRY_GOTO(machine_product_rate(be, &s, &r->flops), rc, done);
    TRY_GOTO(io_open(&disk, c->io, note), rc, done);
    TRY_GOTO(machine_disk_rate(disk, dir, (size_t)256 << 20, c->buffered, &r->read, &r->write), rc, done);
done:
    if (disk != NULL)
        io_close(disk);
    moe_pool_close(pool);
    return rc;
}

static void line(FILE *out, const char *what, uint64_t bytes, const char *note)
{
    char text[32];
    fprintf(out, "  %-34s %12s   %s\n", what, size_text(text, sizeof text, bytes), note);
}

static void print_model(FILE *out, const train_config *c)
{
    const model_spec *m = &c->model;
    fprintf(out, "model     %s: %.2f M parameters, %.2f M in experts (%d layers x %d experts, %d a token), %.2f M active\n", m->model_type,
            (double)spec_parameters(m) / 1e6, (double)spec_expert_parameters(m) / 1e6, spec_moe_layers(m), m->E, m->K,
            (double)spec_active_parameters(m) / 1e6);
    fprintf(out, "step      %lld tokens = %lld windows of %d, micro-batches of %lld\n\n", (long long)c->tokens_per_step,
            (long long)(c->tokens_per_step / c->seq_len), c->seq_len, (long long)c->micro_batch_tokens);
}

static void print_memory(FILE *out, const train_plan *p)
{
    char text[32], note[128];
    fprintf(out, "host memory, of %s (%s)\n", size_text(text, sizeof text, p->limit), p->limit_source);
    line(out, "dense part with moments, gradient", p->dense, "resident");
    line(out, "working buffers", p->scratch, "");
    snprintf(note, sizeof note, "of %s%s", size_text(text, sizeof text, p->stash_full), p->spills ? ", the rest on SSD" : ": all of it");
    line(out, "activations", p->stash, note);
    snprintf(note, sizeof note, "of %s (%s)%s", size_text(text, sizeof text, p->tier_full),
             p->half_bytes > 0 ? p->has_v ? "w as bf16 and its rest, m, v, g" : "w as bf16 and its rest, m and v as bf16, g"
             : p->has_v        ? "w, m, v, g"
                               : "w, m and v as bf16, g", p->resident ? ": all of it" : ", the rest on SSD");
    line(out, "expert slots", p->tier, note);
    line(out, "program, catalogs, tokens", p->overhead, "");
    line(out, "together", p->total, "");
    line(out, "the least that would do", (p->smallest + 94) / 95 * 100, "with one micro-batch a group");
    if (p->groups > 1)
        fprintf(out, "  a step runs as %d groups of %lld tokens: experts are brought in once per group\n", p->groups, (long long)p->group_tokens);
    fprintf(out, "\ndisk\n");
    snprintf(note, sizeof note, "%d places for each part", p->store_slots);
    line(out, "expert records", p->store_bytes, note);
    line(out, "activations", p->spill_bytes, p->spills ? "scratch file" : "none spilled");
    line(out, "dense part of checkpoints", p->dense_file_bytes, "");
    fputc('\n', out);
}

/* Seconds of a phase, and what binds it. */
static double phase_seconds(const phase_traffic *t, const rates *r, const char **binds)
{
    const double compute = t->flops / r->flops;
    const double disk = (t->read) / r->read + (t->write) / r->write + t->spill / (r->read < r->write ? r->read : r->write);
    *binds = compute >= disk ? "compute" : "disk";
    return compute > disk ? compute : disk;
}

static void print_phase(FILE *out, const char *name, const phase_traffic *t, const rates *r)
{
    fprintf(out, "  %-10s read %8.3f GB   write %8.3f GB   activations %8.3f GB   %10.1f GFLOP", name, t->read / 1e9, t->write / 1e9,
            t->spill / 1e9, t->flops / 1e9);
    if (r->flops > 0) {
        const char *binds;
        const double s = phase_seconds(t, r, &binds);
        fprintf(out, "   %8.2f s, bound by %s", s, binds);
    }
    fputc('\n', out);
}

static void print_way(FILE *out, const char *title, const step_traffic *t, const train_config *c, const rates *r)
{
    fprintf(out, "least traffic of a step, every expert touched, %s\n", title);
    print_phase(out, "forward", &t->forward, r);
    print_phase(out, "backward", &t->backward, r);
    if (r->flops > 0) {
        const char *binds;
        const double s = phase_seconds(&t->forward, r, &binds) + phase_seconds(&t->backward, r, &binds);
        fprintf(out, "  step       %.2f s, %.0f tokens/s at best\n", s, (double)c->tokens_per_step / s);
    }
    const double written = t->forward.write + t->backward.write + t->forward.spill;
    fprintf(out, "  wear       %.2f TB written in %lld steps, checkpoints apart\n\n", written * (double)c->steps / 1e12, (long long)c->steps);
}

moe_err command_check(const train_config *c, const char *run_dir, bool measure_machine, FILE *out)
{
    train_plan p;
    char dir[4096];
    snprintf(dir, sizeof dir, "%s%s", run_dir != NULL ? "" : "runs/", run_dir != NULL ? run_dir : c->name);
    existing_folder(dir);
    print_model(out, c);
    TRY(train_plan_make(&p, c, true));
    print_memory(out, &p);
    rates r = {0};
    if (measure_machine) {
        TRY(measure(c, &p, dir, &r));
        fprintf(out, "this machine, now: %.1f GFLOP/s in the fp32 product (%d threads); disk of %s: read %.2f, write %.2f GB/s\n\n",
                r.flops / 1e9, p.threads, dir, r.read / 1e9, r.write / 1e9);
    }
    step_traffic deferred, speculative;
    TRY(traffic_of(&deferred, &p, false));
    TRY(traffic_of(&speculative, &p, true));
    print_way(out, "deferred update", &deferred, c, &r);
    if (p.can_speculate && p.groups == 1)
        print_way(out, "speculative update, no step clipped", &speculative, c, &r);
    return MOE_OK;
}
