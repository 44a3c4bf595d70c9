/* Whole arrays into halves and back (kernels/halves.h). Owns nothing; used when a record is made, imported or exported.
 * Not for the hot path: one thread, plain loops; the products and AdamW read halves themselves. Any thread, no state.
 * Rule: arrays do not overlap. */
#include "kernels/halves.h"

void halves_split(uint16_t *near, uint16_t *rest, const float *x, size_t n)
{
    for (size_t i = 0; near != NULL && i < n; i++)
        near[i] = halves_near(x[i]);
    for (size_t i = 0; rest != NULL && i < n; i++)
        rest[i] = halves_rest(x[i]);
}

void halves_join(float *x, const uint16_t *near, const uint16_t *rest, size_t n)
{
    for (size_t i = 0; i < n; i++)
        x[i] = halves_number(near[i], rest != NULL ? rest[i] : 0);
}
