/* Makes, fills and removes the folder of a test; the numbers of a tensor follow from its number alone. Owns the folder's name. One thread. */
#include "tests/models/hf_folder.h"

#include <criterion/criterion.h>
#include <dirent.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "kernels/matmul.h"

char hf_dir[64];

void hf_folder_setup(void)
{
    snprintf(hf_dir, sizeof hf_dir, "/tmp/moe-hf-XXXXXX");
    cr_assert_not_null(mkdtemp(hf_dir));
    rmdir(hf_dir);
}

void hf_folder_teardown(void)
{
    DIR *d = opendir(hf_dir);
    char path[400];
    for (struct dirent *e; d != NULL && (e = readdir(d)) != NULL;) {
        snprintf(path, sizeof path, "%s/%s", hf_dir, e->d_name);
        unlink(path);
    }
    if (d != NULL)
        closedir(d);
    rmdir(hf_dir);
}

size_t hf_section_floats(const tensor_info *t)
{
    return t->offset + t->floats + 32; /* room behind, to see what is written there */
}

/* Some number for element i of tensor id: many exponents, both signs, ties of bf16 among them. */
float hf_number(uint32_t id, int64_t i)
{
    const uint32_t x = (uint32_t)(i + 1) * 2654435761u ^ id * 40503u;
    return ldexpf((float)((int)(x >> 8 & 0xFFFF) - 0x8000), -20 + (int)(x & 15));
}

/* The section of one tensor, filled. */
float *hf_make_section(const tensor_info *t)
{
    float *s = calloc(hf_section_floats(t), sizeof *s), *x = malloc((size_t)(t->rows * t->cols) * sizeof *x);
    for (int64_t i = 0; i < t->rows * t->cols; i++)
        x[i] = hf_number(t->id, i);
    if (t->layout == TENSOR_PANELS)
        panel_pack(s + t->offset, x, t->rows, t->cols);
    else
        memcpy(s + t->offset, x, (size_t)(t->rows * t->cols) * sizeof *x);
    free(x);
    return s;
}
