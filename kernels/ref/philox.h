/* The constants of Philox4x32-10 (Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3", SC'11), once for
 * the definition and the fast versions. Private to kernels/. */
#ifndef MOE_KERNELS_REF_PHILOX_H
#define MOE_KERNELS_REF_PHILOX_H

#define PHILOX_M0 0xd2511f53u
#define PHILOX_M1 0xcd9e8d57u
#define PHILOX_W0 0x9e3779b9u
#define PHILOX_W1 0xbb67ae85u
enum { PHILOX_ROUNDS = 10 };

#endif
