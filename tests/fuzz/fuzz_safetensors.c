/* Any bytes as a safetensors header before data of any length: no crash, no leak, and what is taken is what the format promises:
 * sorted names, ranges that cover the data without hole or overlap, shapes that agree with them. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "models/formats/safetensors.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void expect(int good, const char *what)
{
    if (!good) {
        fprintf(stderr, "%s\n", what);
        abort();
    }
}

static void check(const st_tensor *t, int64_t n, uint64_t data_bytes)
{
    uint64_t total = 0;
    for (int64_t i = 0; i < n; i++) {
        uint64_t elements = 1;
        expect(i == 0 || strcmp(t[i - 1].name, t[i].name) < 0, "names are sorted and different");
        expect(t[i].begin <= data_bytes && t[i].bytes <= data_bytes - t[i].begin, "a range lies inside the data");
        for (int d = 0; d < t[i].dims; d++)
            elements *= (uint64_t)t[i].shape[d];
        expect(elements == (uint64_t)t[i].elements && elements * st_dtype_bytes(t[i].dtype) == t[i].bytes,
               "shape and bytes agree");
        total += t[i].bytes;
        for (int64_t k = 0; k < i && n < 64; k++)
            expect(t[i].begin + t[i].bytes <= t[k].begin || t[k].begin + t[k].bytes <= t[i].begin || t[i].bytes == 0 ||
                       t[k].bytes == 0,
                   "ranges do not overlap");
    }
    expect(total == data_bytes, "ranges cover the data");
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    uint64_t data_bytes = 0;
    st_tensor *t;
    int64_t n;
    if (size < 2)
        return 0;
    /* The first two bytes choose the length of the data: small ones, and those near 2^64. */
    data_bytes = data[0] < 250 ? data[0] : UINT64_MAX - data[1];
    if (safetensors_parse(&t, &n, (const char *)data + 2, size - 2, data_bytes, "fuzz") == MOE_OK)
        check(t, n, data_bytes);
    else
        expect(t == NULL && n == 0 && moe_error_text()[0] != '\0', "an error has a sentence and leaves nothing");
    free(t);
    return 0;
}
