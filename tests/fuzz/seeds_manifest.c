/* Writes seeds for fuzz_manifest into the folder named: an empty manifest and some of a run, whole and without their checksum. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "memory/manifest.h"

static int write_seed(const char *dir, const char *name, const void *data, size_t n)
{
    char path[4096];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    FILE *f = fopen(path, "wb");
    if (f == NULL || fwrite(data, 1, n, f) != n || fclose(f) != 0) {
        perror(path);
        return 1;
    }
    return 0;
}

int main(int argc, char **argv)
{
    if (argc != 2) {
        fprintf(stderr, "usage: %s FOLDER\n", argv[0]);
        return 64;
    }
    int rc = 0;
    for (int step = 0; step < 4 && rc == 0; step++) {
        record rec[3];
        adamw_step log[4] = {0};
        for (int s = 0; s < 3; s++)
            rec[s] = s < step ? (record){.step = (uint64_t)step - 1, .grad_step = (uint64_t)step, .slot = 1, .sum = {1, 2, 3, 4, 5}}
                              : (record){.slot = -1, .grad_slot = -1};
        for (int i = 0; i < step; i++)
            log[i] = (adamw_step){
                .step = (uint64_t)i + 1, .lr = 1e-3, .beta1 = 0.9, .beta2 = 0.95, .eps = 1e-8, .weight_decay = 0.1, .clip = 1};
        const manifest m = {.uuid = {1, 2, 3},
                            .step = (uint64_t)step,
                            .sections = step,
                            .records = rec,
                            .log_steps = (uint64_t)step,
                            .log = log,
                            .dense_bytes = 100,
                            .state = "state",
                            .state_bytes = 5};
        void *data;
        size_t n;
        if (manifest_format(&m, &data, &n) != MOE_OK) {
            fprintf(stderr, "%s\n", moe_error_text());
            return 1;
        }
        char name[32];
        snprintf(name, sizeof name, "step-%d", step);
        rc |= write_seed(argv[1], name, data, n);
        snprintf(name, sizeof name, "step-%d-unsigned", step);
        rc |= write_seed(argv[1], name, data, n - 8);
        free(data);
    }
    return rc;
}
