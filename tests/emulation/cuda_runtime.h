/* CUDA C++ for the host's compiler: the keywords, the built-in variables and the warp functions that kernels/cuda uses, so that the same
 * source runs on a CPU. Owns the words; emulation.cpp owns how a grid runs (threads of a block are fibers, blocks follow one another).
 * One thread. Rules: all 32 lanes take part in a warp function; __shared__ stands in functions that are no templates. */
#ifndef MOE_TESTS_EMULATION_CUDA_RUNTIME_H
#define MOE_TESTS_EMULATION_CUDA_RUNTIME_H

#include <stdint.h>
#include <string.h>

#include <type_traits>

#include "tests/emulation/cuda_runtime_api.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __align__(n) __attribute__((aligned(n)))
#define __launch_bounds__(...)
#define __shared__ static __attribute__((section("emulated_shared")))

struct uint3 {
    unsigned x, y, z;
};

struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

namespace emulation
{
uint3 thread_index();
uint3 block_index();
uint3 block_size();
uint3 grid_size();
void launch_call(const char *kernel, dim3 grid, dim3 block, void (*call)(const void *), const void *params, size_t bytes);
void barrier(const char *file, int line);
/* What lane `from` gave in this call. */
uint64_t shuffle(unsigned mask, uint64_t mine, int from, const char *file, int line);
/* `all`: what the 32 lanes gave, `bytes` each. */
void exchange(void *all, const void *mine, size_t bytes, unsigned mask, const char *file, int line);
unsigned long long atomic_add(void *at, unsigned long long by);
unsigned long long atomic_min(void *at, unsigned long long with);

template <class... P> void launch(const char *name, dim3 grid, dim3 block, void (*kernel)(P...), std::type_identity_t<P>... args)
{
    const auto bound = [=] { kernel(args...); };
    using bound_type = decltype(bound);
    launch_call(name, grid, block, [](const void *p) { (*static_cast<bound_type *>(p))(); }, &bound, sizeof bound);
}

template <class T> uint64_t word_of(T x)
{
    static_assert(sizeof x <= 8);
    uint64_t word = 0;
    memcpy(&word, &x, sizeof x);
    return word;
}

template <class T> T of_word(uint64_t word)
{
    T x;
    memcpy(&x, &word, sizeof x);
    return x;
}

inline int lane() { return (int)(thread_index().x % 32); }
} // namespace emulation

#define threadIdx (emulation::thread_index())
#define blockIdx  (emulation::block_index())
#define blockDim  (emulation::block_size())
#define gridDim   (emulation::grid_size())

#define CUDA_LAUNCH(kernel, grid, block, stream, ...)                                \
    do {                                                                             \
        (void)(stream);                                                              \
        emulation::launch(#kernel, (grid), (block), kernel, __VA_ARGS__);            \
    } while (0)

#define WHERE const char *file = __builtin_FILE(), int line = __builtin_LINE()

inline void __syncthreads(WHERE) { emulation::barrier(file, line); }
inline void __syncwarp(unsigned mask = 0xffffffffu, WHERE) { emulation::shuffle(mask, 0, emulation::lane(), file, line); }

template <class T> T __shfl_sync(unsigned mask, T x, int from, WHERE)
{
    return emulation::of_word<T>(emulation::shuffle(mask, emulation::word_of(x), from & 31, file, line));
}

template <class T> T __shfl_xor_sync(unsigned mask, T x, int with, WHERE)
{
    return emulation::of_word<T>(emulation::shuffle(mask, emulation::word_of(x), emulation::lane() ^ with, file, line));
}

template <class T> T __shfl_up_sync(unsigned mask, T x, unsigned by, WHERE)
{
    const int lane = emulation::lane(), from = lane < (int)by ? lane : lane - (int)by;
    return emulation::of_word<T>(emulation::shuffle(mask, emulation::word_of(x), from, file, line));
}

inline unsigned __ballot_sync(unsigned mask, int predicate, WHERE)
{
    int32_t all[32], mine = predicate != 0;
    unsigned votes = 0;
    emulation::exchange(all, &mine, sizeof mine, mask, file, line);
    for (int i = 0; i < 32; i++)
        votes |= (unsigned)all[i] << i;
    return votes;
}

inline int __any_sync(unsigned mask, int predicate, WHERE) { return __ballot_sync(mask, predicate, file, line) != 0; }
inline int __all_sync(unsigned mask, int predicate, WHERE) { return __ballot_sync(mask, predicate, file, line) == 0xffffffffu; }

/* Four products of signed bytes. */
inline int __dp4a(int a, int b, int sum)
{
    for (int i = 0; i < 32; i += 8)
        sum += (int)(int8_t)(a >> i) * (int)(int8_t)(b >> i);
    return sum;
}

inline int __popc(unsigned x) { return __builtin_popcount(x); }

inline unsigned long long atomicAdd(unsigned long long *at, unsigned long long by) { return emulation::atomic_add(at, by); }
inline unsigned long long atomicMin(unsigned long long *at, unsigned long long with) { return emulation::atomic_min(at, with); }

/* mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32, fragments as in the PTX manual: d[16, 8] += a[16, 16] b[16, 8]. The order of the sum
 * inside is not documented; here it is one chain over k in fp32. */
void emulated_mma_bf16(float d[4], const uint32_t a[4], const uint32_t b[2], WHERE);
/* ldmatrix.sync.aligned.m8n8.x4[.trans].shared.b16: lane 8 i + r gives the address of row r of matrix i. */
void emulated_ldmatrix(uint32_t out[4], const void *row, bool transposed, WHERE);

#endif
