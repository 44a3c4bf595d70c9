#!/usr/bin/env python3
"""Does moe-train learn what PyTorch learns? Trains the `tiny` preset from the same initial weights on the same windows with both, and compares.

    moe-train prepare --tokenizer tokenizer.json --out DATA text...
    loss_curve.py DATA [--steps 300] [--moe-train build/bin/moe-train] [--out DIR]

The weights are drawn here and saved as a Hugging Face folder; moe-train starts from it (model.from), transformers' Qwen3MoeForCausalLM too.
The windows are those of moe-train's shuffle, computed here a second time. At the end both models are evaluated by PyTorch on the same
held-out windows. Writes DIR/loss_curve.json and DIR/loss_curve.png; exit status 0 when the final losses are within --tolerance.
Needs torch, transformers, numpy and (for the plot) matplotlib: tests/fixtures/requirements.txt."""
import argparse
import json
import math
import os
import pathlib
import subprocess
import sys
import time

import numpy as np
import torch
import torch.nn.functional as F

ROOT = pathlib.Path(__file__).resolve().parent.parent
COEF, WINDOWS, S, VOCAB = 0.01, 16, 256, 8192  # of models/presets/tiny.yaml
LR, BETAS, EPS, DECAY, CLIP = 3e-4, (0.9, 0.95), 1e-8, 0.1, 1.0
LAST = 20  # steps: the final loss is their mean, a single step is mostly its data


def fail(sentence):
    sys.exit(f"loss_curve.py: {sentence}")


# --- the data, as engine/data reads it ------------------------------------------------------------------------------------

def tokens_of(path):
    """One split of `moe-train prepare`: Megatron .idx (dtype code at byte 17) and .bin, a stream of tokens."""
    idx = path.with_suffix(".idx").read_bytes()[:18]
    if idx[:9] != b"MMIDIDX\x00\x00":
        fail(f"{path}.idx is no Megatron index")
    return np.memmap(path.with_suffix(".bin"), dtype={4: np.int32, 8: np.uint16}[idx[17]], mode="r")


def philox(counter, key):
    """Philox4x32-10 (Salmon et al., SC'11), the first word."""
    c, k = list(counter), list(key)
    for _ in range(10):
        a, b = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(b >> 32) ^ c[1] ^ k[0], b & 0xFFFFFFFF, (a >> 32) ^ c[3] ^ k[1], a & 0xFFFFFFFF]
        k = [(k[0] + 0x9E3779B9) & 0xFFFFFFFF, (k[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return c[0]


def shuffled(windows, seed, n):
    """engine/data/shuffle.c: a Feistel network over the next power of four, walked until it lands inside."""
    half = 1
    while (windows - 1) >> (2 * half):
        half += 1
    mask, x, epoch = (1 << half) - 1, n % windows, n // windows
    while True:
        left, right = x >> half, x & mask
        for r in range(8):
            left, right = right, left ^ (philox((right, epoch >> 32, 0xFFFF5AFE - r, epoch & 0xFFFFFFFF), (seed & 0xFFFFFFFF, seed >> 32)) & mask)
        x = left << half | right
        if x < windows:
            return x


def batch(tokens, windows):
    return torch.stack([torch.from_numpy(tokens[w * S : w * S + S + 1].astype(np.int64)) for w in windows])


# --- the two runs ---------------------------------------------------------------------------------------------------------

def model_config():
    from transformers import Qwen3MoeConfig
    return Qwen3MoeConfig(vocab_size=VOCAB, hidden_size=256, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=4, head_dim=64,
                          intermediate_size=1024, moe_intermediate_size=512, num_experts=16, num_experts_per_tok=2, norm_topk_prob=True,
                          max_position_embeddings=S, router_aux_loss_coef=COEF, output_router_logits=True, use_cache=False,
                          pad_token_id=None, attn_implementation="sdpa", experts_implementation="grouped_mm")


def lr_at(step, steps, warmup):
    """Cosine with warmup down to a tenth."""
    if step <= warmup:
        return LR * step / warmup
    return LR / 10 + (LR - LR / 10) * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))


def config_text(args, init, data, warmup):
    schedule = {"kind": "cosine", "warmup_steps": warmup, "min_lr": LR / 10}
    return json.dumps({  # JSON is YAML
        "model": {"from": str(init)}, "data": {"path": str(data)},
        "train": {"steps": args.steps, "seq_len": S, "tokens_per_step": WINDOWS * S, "micro_batch_tokens": WINDOWS * S,
                  "seed": args.seed},
        "optimizer": {"lr": LR, "betas": BETAS, "eps": EPS, "weight_decay": DECAY, "clip_norm": CLIP, "schedule": schedule},
        "balance": {"aux_loss_coef": COEF}, "eval": {"windows": 1},
        "memory": {"ssd": ["store"], "host": args.host_memory}}, indent=1) + "\n"


def run_engine(args, out):
    """moe-train run, then export -> metrics by step"""
    run = out / "run"
    log = open(out / "moe-train.log", "w")
    for words in (["run", out / "loss_curve.yaml", "--run-dir", run, "--resume", "never"],
                  ["export", run, "--out", out / "exported"]):
        r = subprocess.run([str(args.moe_train), *map(str, words)], stdout=log, stderr=subprocess.STDOUT)
        if r.returncode != 0:
            fail(f"moe-train {words[0]} left with {r.returncode}: see {log.name}")
    return [json.loads(line) for line in open(run / "metrics.jsonl")]


def run_torch(model, tokens, windows, steps, warmup, expected):
    """The same steps in PyTorch -> losses. Stops at the first step when it is clear that weights or windows are not the same."""
    ps = list(model.parameters())
    opt = torch.optim.AdamW([{"params": [p for p in ps if p.ndim >= 2], "weight_decay": DECAY},
                             {"params": [p for p in ps if p.ndim < 2], "weight_decay": 0.0}], lr=LR, betas=BETAS, eps=EPS, fused=True)
    losses = []
    for step in range(1, steps + 1):
        for g in opt.param_groups:
            g["lr"] = lr_at(step, steps, warmup)
        x = batch(tokens, windows[(step - 1) * WINDOWS : step * WINDOWS])
        opt.zero_grad()
        out = model(input_ids=x[:, :-1])
        loss = F.cross_entropy(out.logits.reshape(-1, VOCAB), x[:, 1:].reshape(-1))
        (loss + COEF * out.aux_loss).backward()
        torch.nn.utils.clip_grad_norm_(ps, CLIP)
        opt.step()
        losses.append(loss.item())
        e = expected[step - 1]
        if abs(e["lr"] - opt.param_groups[0]["lr"]) > 1e-9:
            fail(f"step {step}: the learning rates are {e['lr']} and {opt.param_groups[0]['lr']}: not the same schedule")
        if step == 1 and max(abs(e["loss"] - loss.item()), abs(e["aux_loss"] - out.aux_loss.item())) > 1e-4:
            fail(f"before any update the losses are {e['loss']:.6f} and {loss.item():.6f}: not the same weights or windows")
        if sys.stderr.isatty():
            print(f"\rPyTorch: step {step}/{steps}, loss {loss.item():.4f}, moe-train {e['loss']:.4f} ", end="", file=sys.stderr, flush=True)
    return losses


@torch.no_grad()
def held_out(model, tokens, count):
    have = (len(tokens) - 1) // S
    pick = [i * have // count for i in range(count)] if have > count else range(have)
    total = 0.0
    for i in range(0, len(pick), WINDOWS):
        x = batch(tokens, pick[i : i + WINDOWS])
        total += F.cross_entropy(model(input_ids=x[:, :-1]).logits.reshape(-1, VOCAB), x[:, 1:].reshape(-1), reduction="sum").item()
    return total / (len(pick) * S)


# --- the result -----------------------------------------------------------------------------------------------------------

def draw(path, ours, theirs):
    try:
        import matplotlib
        matplotlib.use("Agg")
        import matplotlib.pyplot as plt
    except ImportError:
        print("loss_curve.py: no matplotlib, no plot", file=sys.stderr)
        return
    x = np.arange(1, len(ours) + 1)
    fig, (top, low) = plt.subplots(2, 1, sharex=True, figsize=(8, 6), height_ratios=[3, 1], constrained_layout=True)
    top.plot(x, theirs, color="#d9822b", linewidth=3, label="PyTorch (transformers)")
    top.plot(x, ours, color="#2f6fb0", linewidth=1, label="moe-train")
    top.set_ylabel("loss, nats per token")
    top.set_title("The same windows, the same initial weights", loc="left", fontweight="bold")
    top.legend(frameon=False)
    low.plot(x, np.array(ours) - np.array(theirs), color="#8a8a8a", linewidth=1)
    low.axhline(0, color="black", linewidth=0.5)
    low.set_ylabel("difference")
    low.set_xlabel("optimizer step")
    fig.savefig(path, dpi=120)


def main():
    a = argparse.ArgumentParser(description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    a.add_argument("data", type=pathlib.Path, help="folder made by moe-train prepare, at most 8192 token ids")
    a.add_argument("--steps", type=int, default=300)
    a.add_argument("--seed", type=int, default=1234, help="of the initial weights and the order of the windows")
    a.add_argument("--threads", type=int, default=0, help="of PyTorch; 0: its own choice")
    a.add_argument("--host-memory", help="memory.host of moe-train, e.g. 512MiB (experts and their states are on the SSD in any case)")
    a.add_argument("--moe-train", type=pathlib.Path, default=ROOT / "build" / "bin" / "moe-train")
    a.add_argument("--out", type=pathlib.Path, default=pathlib.Path("loss_curve"), help="a new folder")
    a.add_argument("--tolerance", type=float, default=0.02, help="nats between the final losses")
    args = a.parse_args()
    if not args.moe_train.exists():
        fail(f"{args.moe_train} is not there: build first, or --moe-train PATH")
    if args.out.exists():
        fail(f"{args.out} exists: expected a new folder")
    from transformers import AutoModelForCausalLM, Qwen3MoeForCausalLM
    from transformers.utils import logging
    logging.disable_progress_bar()
    if args.threads:
        torch.set_num_threads(args.threads)
    data, out = args.data.resolve(), args.out.resolve()
    tokens, val, warmup = tokens_of(data / "train"), tokens_of(data / "val"), max(1, args.steps // 15)
    torch.manual_seed(args.seed)
    out.mkdir(parents=True)
    model = Qwen3MoeForCausalLM(model_config())
    model.save_pretrained(out / "init")
    (out / "loss_curve.yaml").write_text(config_text(args, out / "init", data, warmup))
    have = (len(tokens) - 1) // S
    windows = [shuffled(have, args.seed, n) for n in range(args.steps * WINDOWS)]

    start = time.time()
    metrics = run_engine(args, out)
    middle = time.time()
    theirs = run_torch(model, tokens, windows, args.steps, warmup, metrics)
    ours, end = [m["loss"] for m in metrics], time.time()
    exported = AutoModelForCausalLM.from_pretrained(out / "exported", dtype=torch.float32, experts_implementation="grouped_mm")
    result = {"steps": args.steps, "data": os.path.basename(data), "train_windows": have, "torch": torch.__version__,
              "final_moe_train": float(np.mean(ours[-LAST:])), "final_pytorch": float(np.mean(theirs[-LAST:])),
              "held_out_moe_train": held_out(exported, val, 64), "held_out_pytorch": held_out(model, val, 64),
              "largest_step_difference": float(np.max(np.abs(np.array(ours) - np.array(theirs)))),
              "seconds_moe_train": round(middle - start, 1), "seconds_pytorch": round(end - middle, 1)}
    result["difference"] = max(abs(result[f"{what}_moe_train"] - result[f"{what}_pytorch"]) for what in ("final", "held_out"))
    (out / "loss_curve.json").write_text(json.dumps(dict(result, losses_moe_train=ours, losses_pytorch=theirs), indent=1) + "\n")
    draw(out / "loss_curve.png", ours, theirs)
    print(json.dumps(result, indent=1))
    if result["difference"] > args.tolerance:
        fail(f"the final losses are {result['difference']:.4f} nats apart: expected at most {args.tolerance}")


if __name__ == "__main__":
    main()
