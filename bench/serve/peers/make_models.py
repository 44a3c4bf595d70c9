#!/usr/bin/env python3
"""Write random-weight, valid GGUF files with the shapes of real MoE models.

    make_models.py [--out DIR] [PRESET...]

Needs `numpy` and `gguf` (0.19.x). The files are streamed (peak RAM below 1 GiB) and are a
pure function of (preset, --seed, --vocab): run it twice, get the same bytes.

How the weights are made
  * Quantised tensors are drawn directly in their quantised form (Q4_0: nibbles with a rounded
    normal law, Q8_0: int8 likewise; one f16 scale per block of 32, log-normal spread 0.15).
    They do not compress and no block repeats.
  * Norm weights are 1. Channel 0 of every token embedding holds the constant A = sqrt(D); all
    other channels are N(0,1). Nothing writes channel 0 (that row of attn_output / ffn_down is
    zero) and nothing but the router reads it (that column of q, k, v, gate, up, output is
    zero), so the constant reaches every router unharmed.
  * Router (F32): rows N(0, s^2), and column 0 carries a per-expert offset chosen so that the
    marginal probability of "expert is in the top K" follows K * r^-a / sum(r^-a), where r is the
    expert's rank (a random permutation per layer) and a is drawn per layer from [0.55, 0.85]
    (mean 0.7). With Gaussian noise the offset for inclusion probability p is sigma*Phi^-1(p).
    The choice is therefore skewed and stable, differs by layer, and within a layer depends on the
    token (and a little on its context).
"""
import argparse, hashlib, math, os, statistics, time
import numpy as np
import gguf
from gguf import GGMLQuantizationType as Q

PRESETS = {
    #                     arch       layers  d     heads kv  hd   ff    E    K
    "olmoe":         ("olmoe",     16,    2048,  16,  16, 128, 1024,  64, 8),
    "qwen3moe":      ("qwen3moe",  24,    2048,  32,   4, 128,  768, 128, 8),
    "tiny-olmoe":    ("olmoe",      4,     256,   4,   4,  64,  128,  16, 4),
    "tiny-qwen3moe": ("qwen3moe",   4,     256,   8,   2,  64,  128,  32, 4),
}
ADDED_SPECIAL = 3   # gguf token type CONTROL

_N = statistics.NormalDist()
def _normal_lut(levels, scale, lim):
    z = np.array([_N.inv_cdf((i + 0.5) / levels) for i in range(levels)])
    q = np.clip(np.rint(z * scale), -lim, lim).astype(np.int8)
    return q, float(np.sqrt(np.mean(q.astype(np.float64) ** 2)))

_q4, Q4_STD = _normal_lut(256, 2.6, 7)
_n4 = (_q4 + 8).astype(np.uint8)
LUT4 = (_n4[np.arange(65536) & 255] | (_n4[np.arange(65536) >> 8] << 4)).astype(np.uint8)
LUT8, Q8_STD = _normal_lut(65536, 36.0, 127)

def _u16(rng, n):
    return rng.bit_generator.random_raw((n + 3) // 4).view(np.uint16)[:n]

def _scales(rng, n, d):
    lut = (d * np.exp(0.15 * np.array([_N.inv_cdf((i + 0.5) / 256) for i in range(256)]))).astype(np.float16)
    return lut[rng.bit_generator.random_raw((n + 7) // 8).view(np.uint8)[:n]]

def q4_0(rng, rows, cols, std, zero_col0=False, zero_row0_every=0):
    """rows x cols in Q4_0; returns uint8 [rows, cols/32*18]."""
    nb = rows * cols // 32
    out = np.empty((nb, 18), np.uint8)
    d = _scales(rng, nb, std / Q4_STD)
    if zero_row0_every:                      # first row of each expert: all zero
        d.reshape(rows, cols // 32)[::zero_row0_every] = 0
    out[:, :2] = d.view(np.uint8).reshape(nb, 2)
    step = 1 << 20
    for i in range(0, nb, step):
        k = min(step, nb - i)
        out[i:i + k, 2:] = LUT4[_u16(rng, k * 16)].reshape(k, 16)
    out = out.reshape(rows, cols // 32, 18)
    if zero_col0:
        out[:, 0, 2] = (out[:, 0, 2] & 0xF0) | 8
    return out.reshape(rows, cols // 32 * 18)

def q8_0(rng, rows, cols, std, zero_col0=False, zero_row0=False, const_col0=0.0):
    nb = rows * cols // 32
    out = np.empty((nb, 34), np.uint8)
    d = _scales(rng, nb, std / Q8_STD)
    if zero_row0:
        d.reshape(rows, cols // 32)[0] = 0
    out[:, :2] = d.view(np.uint8).reshape(nb, 2)
    step = 1 << 19
    for i in range(0, nb, step):
        k = min(step, nb - i)
        out[i:i + k, 2:] = LUT8[_u16(rng, k * 32)].reshape(k, 32).view(np.uint8)
    out = out.reshape(rows, cols // 32, 34)
    if zero_col0:
        out[:, 0, 2] = 0
    if const_col0:                           # block 0 of each row holds the constant at full scale
        dc = np.float16(const_col0 / 127)
        q = np.rint(out[:, 0, 2:].view(np.int8) * (std / Q8_STD / float(dc))).astype(np.int8)
        q[:, 0] = 127
        out[:, 0, 2:] = q.view(np.uint8)
        out[:, 0, :2] = np.full(rows, dc, np.float16).view(np.uint8).reshape(rows, 2)
    return out.reshape(rows, cols // 32 * 34)

def router(rng, E, D, K, A, var_rest, s=0.04):
    a = rng.uniform(0.55, 0.85)
    r = np.arange(1, E + 1, dtype=np.float64) ** -a
    p = np.minimum(K * r / r.sum(), 0.97)
    o = np.array([_N.inv_cdf(x) for x in p])[rng.permutation(E)]
    W = rng.standard_normal((E, D)).astype(np.float32) * np.float32(s)
    W[:, 0] = o * s * math.sqrt((D - 1) * var_rest) / A
    return W

def vocab(n):
    """A byte-level BPE of n tokens that nobody trained: the 256 bytes, then pairs and triples of letters, then two special tokens. Only its size
    matters here: prompts are token ids."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    byte = {b: chr(b) for b in visible} | {b: chr(256 + i) for i, b in enumerate(b for b in range(256) if b not in visible)}
    letters = [chr(c) for c in range(33, 127)]  # ASCII: a server never waits for the rest of a character
    pairs = [(a, b) for a in letters for b in letters]
    merges = (pairs + [(a + b, c) for a, b in pairs for c in letters])[:n - 256 - 2]
    special = ["<|endoftext|>", "<|im_end|>"]
    tokens = [byte[b] for b in range(256)] + [a + b for a, b in merges] + special
    return tokens, [1] * (n - 2) + [ADDED_SPECIAL] * 2, [f"{a} {b}" for a, b in merges]

def build(name, out_path, n_vocab, seed, growth):
    arch, L, D, H, KV, HD, F, E, K = PRESETS[name]
    A = math.sqrt(D)
    tokens, types, merges = vocab(n_vocab)
    V = len(tokens)
    w = gguf.GGUFWriter(out_path, arch)
    w.add_name(name); w.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_0)
    w.add_block_count(L); w.add_context_length(32768); w.add_embedding_length(D)
    w.add_feed_forward_length(F); w.add_head_count(H); w.add_head_count_kv(KV)
    w.add_layer_norm_rms_eps(1e-6); w.add_rope_freq_base(1e6 if arch == "qwen3moe" else 1e4)
    w.add_expert_count(E); w.add_expert_used_count(K); w.add_vocab_size(V)
    if arch == "qwen3moe":
        w.add_key_length(HD); w.add_value_length(HD); w.add_expert_feed_forward_length(F)
    w.add_tokenizer_model("gpt2"); w.add_tokenizer_pre("qwen2")
    w.add_token_list(tokens); w.add_token_types(types); w.add_token_merges(merges)
    w.add_bos_token_id(tokens.index("<|endoftext|>")); w.add_eos_token_id(tokens.index("<|im_end|>"))
    w.add_pad_token_id(tokens.index("<|endoftext|>")); w.add_add_bos_token(False)

    one = lambda n: (lambda g: np.ones(n, np.float32))
    iD, iF, iQ = 1 / math.sqrt(D), 1 / math.sqrt(F), 1 / math.sqrt(H * HD)
    down = (4.0 if arch == "olmoe" else 2.0) * iF
    qn = (H * HD, KV * HD) if arch == "olmoe" else (HD, HD)
    T = []   # name, shape (rows.., cols), type, maker(rng)
    T.append(("token_embd.weight", (V, D), Q.Q8_0, lambda g: q8_0(g, V, D, 1.0, const_col0=A)))
    for i in range(L):
        b = f"blk.{i}."
        T += [(b + "attn_norm.weight", (D,), Q.F32, one(D)),
              (b + "attn_q.weight", (H * HD, D), Q.Q8_0, lambda g: q8_0(g, H * HD, D, iD, zero_col0=True)),
              (b + "attn_k.weight", (KV * HD, D), Q.Q8_0, lambda g: q8_0(g, KV * HD, D, iD, zero_col0=True)),
              (b + "attn_v.weight", (KV * HD, D), Q.Q8_0, lambda g: q8_0(g, KV * HD, D, iD, zero_col0=True)),
              (b + "attn_q_norm.weight", (qn[0],), Q.F32, one(qn[0])),
              (b + "attn_k_norm.weight", (qn[1],), Q.F32, one(qn[1])),
              (b + "attn_output.weight", (D, H * HD), Q.Q8_0, lambda g: q8_0(g, D, H * HD, iQ, zero_row0=True)),
              (b + "ffn_norm.weight", (D,), Q.F32, one(D)),
              (b + "ffn_gate_inp.weight", (E, D), Q.F32,
               lambda g, i=i: router(g, E, D, K, A, 1.0 + growth * (i + 0.5))),
              (b + "ffn_gate_exps.weight", (E, F, D), Q.Q4_0, lambda g: q4_0(g, E * F, D, iD, zero_col0=True)),
              (b + "ffn_up_exps.weight", (E, F, D), Q.Q4_0, lambda g: q4_0(g, E * F, D, iD, zero_col0=True)),
              (b + "ffn_down_exps.weight", (E, D, F), Q.Q4_0, lambda g: q4_0(g, E * D, F, down, zero_row0_every=D))]
    T += [("output_norm.weight", (D,), Q.F32, one(D)),
          ("output.weight", (V, D), Q.Q8_0, lambda g: q8_0(g, V, D, iD, zero_col0=True))]

    def nbytes(shape, t):
        blk, sz = gguf.GGML_QUANT_SIZES[t]
        return int(np.prod(shape)) // blk * sz
    for n, shape, t, _ in T:
        if t == Q.F32:
            w.add_tensor_info(n, shape, np.dtype(np.float32), nbytes(shape, t))
        else:
            bs = shape[:-1] + (nbytes((shape[-1],), t),)
            w.add_tensor_info(n, bs, np.dtype(np.uint8), nbytes(shape, t), raw_dtype=t)
    w.write_header_to_file(); w.write_kv_data_to_file(); w.write_ti_data_to_file()
    for n, shape, t, make in T:
        key = hashlib.sha256(f"{name}/{seed}/{n}".encode()).digest()
        g = np.random.Generator(np.random.SFC64(np.random.SeedSequence(list(key))))
        x = make(g)
        assert x.nbytes == nbytes(shape, t), n
        w.write_tensor_data(x)
    w.close()

if __name__ == "__main__":
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("presets", nargs="*", default=["olmoe", "qwen3moe"])
    ap.add_argument("--out", default=".")
    ap.add_argument("--vocab", type=int, default=50304)
    ap.add_argument("--seed", type=int, default=20261122)
    ap.add_argument("--growth", type=float, default=0.10,
                    help="expected growth per layer of the variance of the non-constant channels")
    a = ap.parse_args()
    for p in a.presets:
        t0 = time.time()
        f = os.path.join(a.out, f"{p}.gguf")
        build(p, f, a.vocab, a.seed, a.growth)
        print(f"{f}: {os.path.getsize(f)} bytes, {time.time() - t0:.1f} s", flush=True)
