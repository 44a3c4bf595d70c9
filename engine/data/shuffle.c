/* A permutation without a table: a balanced Feistel network over the next power of four, whose round function is Philox, walked
 * along its cycle until it lands inside [0, windows) (Black and Rogaway, "Ciphers with arbitrary finite domains", 2002). A
 * Feistel network is a bijection whatever its round function; the walk keeps that on the part. The domain is less than four times
 * the range, so a walk is under four steps on average. */
#include "engine/data/dataset.h"

#include "kernels/random.h"

enum { ROUNDS = 8 }; /* four make it pseudo-random on large domains (Luby and Rackoff); eight for the small ones */

#define SHUFFLE_TENSOR UINT32_C(0xFFFF5AFE) /* key of its own: weights are numbered from 0 */

static uint64_t permute(uint64_t x, int half_bits, uint64_t seed, uint64_t epoch)
{
    const uint64_t mask = (UINT64_C(1) << half_bits) - 1;
    uint64_t left = x >> half_bits, right = x & mask;
    for (uint64_t round = 0; round < ROUNDS; round++) {
        uint32_t words[4];
        const random_key key = {.seed = seed, .tensor = SHUFFLE_TENSOR - (uint32_t)round, .step = (uint32_t)epoch};
        random_words(words, key, right | (epoch >> 32) << 32); /* right has at most 32 bits */
        const uint64_t f = words[0] & mask, next = left ^ f;
        left = right;
        right = next;
    }
    return left << half_bits | right;
}

int64_t dataset_shuffled(int64_t windows, uint64_t seed, int64_t n)
{
    if (windows <= 1)
        return 0;
    int half_bits = 1;
    while (half_bits < 32 && (uint64_t)(windows - 1) >> (2 * half_bits))
        half_bits++;
    uint64_t x = (uint64_t)(n % windows);
    do
        x = permute(x, half_bits, seed, (uint64_t)(n / windows));
    while (x >= (uint64_t)windows);
    return (int64_t)x;
}
