#!/usr/bin/env python3
"""Writes numfmt_gguf.h: what the gguf package makes of a few rows, for test_numfmt.c.

    pip install gguf==0.19.0 numpy==2.4.6
    python3 tests/kernels/make_numfmt.py > tests/kernels/numfmt_gguf.h
"""
import numpy as np
from gguf import GGMLQuantizationType as T
from gguf.quants import dequantize, quantize

BLOCK = 32
rng = np.random.default_rng(20261122)


def rows():
    """Blocks that meet every rounding: zeros, one number, ties, both signs of the extreme, tiny, huge, smooth noise."""
    blocks = [np.zeros(BLOCK), np.full(BLOCK, 0.375), np.eye(1, BLOCK, 7)[0] * -3.0]
    blocks.append(np.arange(BLOCK) * 0.5 - 8.0)              # ties of 4 and 5 bits
    blocks.append((np.arange(BLOCK) - 15.5) * 2.0)           # ties of 8 bits: d = 31 / 127
    blocks.append(np.r_[127.0, np.arange(31) * 0.5 - 7.5])   # d = 1
    blocks.append(rng.standard_normal(BLOCK) * 1e-6)         # scales that are denormals of fp16
    blocks.append(rng.standard_normal(BLOCK) * 1e-12)        # scales that vanish
    blocks.append(rng.standard_normal(BLOCK) * 6e4)
    blocks += [rng.standard_normal(BLOCK) * s for s in (1.0, 0.02, 0.7, 3.0)]
    blocks.append(np.abs(rng.standard_normal(BLOCK)) + 1.0)  # a least far from zero
    return np.concatenate(blocks).astype(np.float32)


def table(kind, name, values, form):
    out = [f"static const {kind} {name}[{len(values)}] = {{"]
    for i in range(0, len(values), 12):
        out.append("    " + " ".join(form % v + "," for v in values[i:i + 12]))
    print("\n".join(out) + "\n};")


x = rows()
print("/* Written by make_numfmt.py from the gguf package 0.19.0; do not edit. */")
print("#ifndef MOE_TESTS_KERNELS_NUMFMT_GGUF_H\n#define MOE_TESTS_KERNELS_NUMFMT_GGUF_H\n\n#include <stdint.h>\n")
table("uint32_t", "gguf_input", x.view(np.uint32), "0x%08xu")
for t in (T.F16, T.BF16, T.Q4_0, T.Q4_1, T.Q8_0, T.Q5_0, T.Q5_1, T.MXFP4):
    with np.errstate(all="ignore"):
        stored = quantize(x, t).view(np.uint8).ravel()
        back = dequantize(stored, t).ravel().astype(np.float32)
    table("uint8_t", f"gguf_{t.name.lower()}", stored, "%3d")
    table("uint32_t", f"gguf_{t.name.lower()}_back", back.view(np.uint32), "0x%08xu")

# Formats that are only read: any bytes, with scales that are numbers.
for t, size, scales in ((T.Q4_K, 144, (0, 2)), (T.Q5_K, 176, (0, 2)), (T.Q6_K, 210, (208,)), (T.IQ4_NL, 18, (0,))):
    blocks = rng.integers(0, 256, (2 if size > 100 else 4, size), dtype=np.uint8)
    for at in scales:
        blocks[:, at:at + 2] = (rng.standard_normal(len(blocks)) * 0.01).astype(np.float16).view(np.uint8).reshape(-1, 2)
    table("uint8_t", f"gguf_{t.name.lower()}", blocks.ravel(), "%3d")
    table("uint32_t", f"gguf_{t.name.lower()}_back", dequantize(blocks.ravel(), t).ravel().view(np.uint32), "0x%08xu")
print("\n#endif")
