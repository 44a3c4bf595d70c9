#!/usr/bin/env python3
"""Writes numfmt_e4m3.h: what torch.float8_e4m3fn makes of every code, and of numbers around every rounding, for test_numfmt.c.

    pip install torch==2.15.0 numpy
    python3 tests/kernels/make_e4m3.py > tests/kernels/numfmt_e4m3.h
"""
import numpy as np
import torch

codes = torch.arange(256, dtype=torch.int16).to(torch.uint8)
values = codes.view(torch.float8_e4m3fn).to(torch.float32).numpy()

finite = np.sort(values[:127])
middles = (finite[:-1] + finite[1:]) / 2
around = [finite, middles, np.nextafter(middles, np.float32(0)), np.nextafter(middles, np.float32(1e9))]
ends = np.array([448, 449, 463.99, 464, 464.1, 479, 480, 500, 1e30, np.inf, np.nan, 1e-45, 1e-38, 2**-10, 2**-11], dtype=np.float32)
x = np.concatenate(around + [ends]).astype(np.float32)
x = np.concatenate([x, -x[::3]])
stored = torch.from_numpy(x).to(torch.float8_e4m3fn).view(torch.uint8).numpy()

print("/* Written by make_e4m3.py from torch; do not edit. */")
print("#ifndef MOE_TESTS_KERNELS_NUMFMT_E4M3_H\n#define MOE_TESTS_KERNELS_NUMFMT_E4M3_H\n\n#include <math.h>\n#include <stdint.h>\n")
print("static const float torch_e4m3[256] = {")
for i in range(0, 256, 8):
    print("    " + " ".join("NAN," if np.isnan(v) else float(v).hex().replace("0x0.0p+0", "0.0") + "f," for v in values[i:i + 8]))
print("};\n\nstatic const struct {\n    uint32_t bits;\n    uint8_t code;\n} torch_to_e4m3[] = {")
bits = x.view(np.uint32)
for i in range(0, len(x), 6):
    print("    " + " ".join("{0x%08xu, 0x%02x}," % (b, c) for b, c in zip(bits[i:i + 6], stored[i:i + 6])))
print("};\n\n#endif")
