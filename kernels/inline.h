/* For the small functions of the headers that the CPU and a GPU share: one text, so the same bits on both. */
#ifndef MOE_KERNELS_INLINE_H
#define MOE_KERNELS_INLINE_H

#ifdef __CUDACC__
#define KERNEL_INLINE static inline __host__ __device__
#else
#define KERNEL_INLINE static inline
#endif

#endif
