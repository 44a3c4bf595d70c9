"""Makes adamw_pytorch.h: what torch.optim.AdamW (single tensor, fp32, CPU) makes of a few numbers, bit by bit.

    pip install torch==2.15.0 && python make_adamw.py > adamw_pytorch.h

Gradients are (i * 37 + s * 11) % 23 - 11 over 8, times 2^-(i % 5), so that the C test makes the same ones; every fourth step has none.
"""
import struct

import torch

N, STEPS = 24, 12
CASES = [  # name, lr, beta1, beta2, eps, weight decay
    ("usual", 3e-4, 0.9, 0.95, 1e-8, 0.1),
    ("short memory", 1e-2, 0.4, 0.9, 1e-6, 0.01),
    ("no decay", 1e-3, 0.9, 0.999, 1e-8, 0.0),
]


def bits(x):
    return ", ".join("0x%08x" % struct.unpack("<I", struct.pack("<f", v))[0] for v in x.tolist())


def run(lr, beta1, beta2, eps, decay):
    i = torch.arange(N)
    w = torch.nn.Parameter(((i * 29 % 31) - 15).float() / 16)
    optimizer = torch.optim.AdamW([w], lr=lr, betas=(beta1, beta2), eps=eps, weight_decay=decay, foreach=False, fused=False)
    for s in range(STEPS):
        grad = ((i * 37 + s * 11) % 23 - 11).float() / 8 * 2.0 ** -(i % 5).float()
        w.grad = grad if s % 4 != 3 else torch.zeros(N)
        optimizer.step()
    state = optimizer.state[w]
    return w.detach(), state["exp_avg"], state["exp_avg_sq"]


print("/* Made by tests/kernels/make_adamw.py with PyTorch %s: do not edit. */" % torch.__version__.split("+")[0])
print("#include <stdint.h>\n")
print("enum { PYTORCH_N = %d, PYTORCH_STEPS = %d };" % (N, STEPS))
print("static const struct pytorch_case {")
print("    const char *name;\n    double lr, beta1, beta2, eps, decay;\n    uint32_t w[PYTORCH_N], m[PYTORCH_N], v[PYTORCH_N];")
print("} pytorch_cases[] = {")
for name, *numbers in CASES:
    w, m, v = run(*numbers)
    print('    {"%s", %s,' % (name, ", ".join(repr(n) for n in numbers)))
    print("     {%s},\n     {%s},\n     {%s}}," % (bits(w), bits(m), bits(v)))
print("};")
