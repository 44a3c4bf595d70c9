#include "engine/plan/machine.h"

#include <stdio.h>
#include <stdlib.h>

#include "engine/base/clock.h"
#include "memory/budget.h"

enum { PRODUCT_ROWS = 960, PRODUCT_N = 512, PRODUCT_K = 256, PRODUCT_ROUNDS = 12, DISK_BUFFER = 16 << 20 };

moe_err machine_product_rate(const moe_backend *be, moe_stream *s, double *flops_per_second)
{
    const size_t nx = (size_t)PRODUCT_ROWS * PRODUCT_K, nw = panel_floats(PRODUCT_N, PRODUCT_K), ny = (size_t)PRODUCT_ROWS * PRODUCT_N;
    void *block;
    *flops_per_second = 0;
    TRY(budget_alloc(&block, (nx + nw + ny) * sizeof(float), "measurement"));
    float *x = block, *w = x + nx;
    for (size_t i = 0; i < nx + nw; i++)
        x[i] = (float)(i % 7) - 3;
    const float *weights[1] = {w};
    const int32_t offset[2] = {0, PRODUCT_ROWS};
    const matmul_args a = {
        .w = weights, .y = w + nw, .x = x, .ldy = PRODUCT_N, .ldx = PRODUCT_K, .offset = offset, .G = 1, .N = PRODUCT_N, .K = PRODUCT_K,
    };
    moe_err rc = MOE_OK;
    for (int i = 0; i < PRODUCT_ROUNDS && rc == MOE_OK; i++) {
        const double t0 = moe_seconds();
        rc = be->matmul_forward(&a, s);
        const double rate = 2.0 * PRODUCT_ROWS * PRODUCT_N * PRODUCT_K / (moe_seconds() - t0);
        if (rate > *flops_per_second)
            *flops_per_second = rate;
    }
    budget_free(block);
    return rc;
}

/* Moves the whole file through one buffer, then syncs when asked. */
static moe_err time_file(io *self, io_file *f, void *buf, size_t bytes, bool write, double *rate)
{
    const double t0 = moe_seconds();
    for (size_t at = 0; at < bytes; at += DISK_BUFFER) {
        const io_range r = {.file = f, .write = write, .buf = buf, .bytes = DISK_BUFFER, .offset = at};
        TRY(io_transfer_range(self, &r));
    }
    if (write)
        TRY(self->ops->sync(self, f));
    *rate = (double)bytes / (moe_seconds() - t0);
    return MOE_OK;
}

moe_err machine_disk_rate(io *self, const char *dir, size_t bytes, bool buffered, double *read, double *write)
{
    char path[4096];
    void *buf = NULL;
    io_file *f = NULL;
    moe_err rc;
    *read = *write = 0;
    snprintf(path, sizeof path, "%s/measure.tmp", dir);
    TRY(self->ops->remove(self, path));
    TRY(budget_alloc(&buf, DISK_BUFFER, "measurement"));
    TRY_GOTO(self->ops->open(self, &f, path, IO_CREATE | (buffered ? IO_DROP : IO_DIRECT)), rc, done);
    TRY_GOTO(self->ops->allocate(self, f, bytes), rc, done);
    TRY_GOTO(time_file(self, f, buf, bytes, true, write), rc, done);
    TRY_GOTO(time_file(self, f, buf, bytes, false, read), rc, done);
done:
    if (f != NULL)
        self->ops->close(self, f);
    if (self->ops->remove(self, path) != MOE_OK && rc == MOE_OK)
        rc = moe_fail(MOE_E_IO, "%s: cannot be removed", path);
    budget_free(buf);
    return rc;
}
