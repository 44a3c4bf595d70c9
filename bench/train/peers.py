#!/usr/bin/env python3
"""Tokens per second without a memory limit, fp32: moe-train, hand-tuned PyTorch and transformers (grouped_mm) in turn, A B C A B C.

    peers.py BUILD --peers DIR [--config tiny,small,fine]

DIR is what peers/setup.sh made; without it moe-train is measured alone. Each turn is a new process with its own warm-up, the FMA peak of the
machine is measured before each round. The percentage of the peak counts 6 x active parameters + causal attention, as moe-train's
gflops_per_second does, for all three."""
import glob
import json
import shlex
import subprocess

import common as c

# Timed steps of a turn: five and more over three rounds. Two steps of warm-up: the second is the first that reads both moments.
STEPS, WARMUP = {"tiny": 5}, 2
PYTORCH = ("hand", "transformers")


def allocator(choice):
    if choice == "libc":
        return ""
    found = sorted(glob.glob("/usr/lib/*/libtcmalloc_minimal.so.4"))
    if not found and choice == "tcmalloc":
        c.fail("no tcmalloc here (Debian: apt install libtcmalloc-minimal4)")
    return found[0] if found else ""


def pytorch(args, config, model, warmup, steps):
    words = ["python", c.HERE / "peers" / "train.py", "--config", config, "--model", model, "--threads", args.threads, "--warmup", warmup,
             "--steps", steps]
    script = f". {shlex.quote(str(args.peers / 'env.sh'))} && LD_PRELOAD={shlex.quote(args.preload)} exec {shlex.join(map(str, words))}"
    out = subprocess.run(["bash", "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if out.returncode != 0:
        c.fail(f"PyTorch, {model}, {config}: exit status {out.returncode}: {out.stderr.strip()[-2000:]}")
    r = json.loads(out.stdout.splitlines()[-1])
    return {"seconds": [s["seconds"] for s in r["steps"]], "cpu": [s["cpu_seconds"] for s in r["steps"]], "peak_rss": r["peak_rss"], "turn": r}


def ours(args, config, folder, data, warmup, steps):
    r = c.train(args, c.PRESETS / f"{config}.yaml", folder, warmup + steps, [f"data.path={data}"])
    at = [m["cpu_seconds"] for m in r["steps"]][warmup - 1:]
    return {"seconds": [m["seconds"] for m in r["steps"][warmup:]], "cpu": [b - a for a, b in zip(at, at[1:])], "peak_rss": r["peak_rss"],
            "turn": r["steps"]}


def measure(args, config, folder):
    """-> every turn of every system"""
    warmup, steps = args.warmup, args.steps or STEPS.get(config, 2)
    plan = c.check(args.build, c.PRESETS / f"{config}.yaml")
    vocab, tokens = c.shape(args.build, c.PRESETS / f"{config}.yaml")
    data = c.tokens_file(folder, vocab, tokens * (warmup + steps) + 1)
    systems = ["moe-train", *(PYTORCH if args.peers else [])]
    samples = {"tokens_per_step": tokens, "flops_per_step": plan["flops"], "peak": [], **{s: [] for s in systems}}
    for r in range(args.rounds):
        samples["peak"].append(c.peak(args.build, args.threads))
        for s in systems:
            turn = ours(args, config, folder, data, warmup, steps) if s == "moe-train" else pytorch(args, config, s, warmup, steps)
            samples[s].append(turn)
            c.say(f"{config} round {r + 1} {s:<12} {' '.join(f'{x:.3f}' for x in turn['seconds'])} s")
    return samples


def judge(config, samples):
    """The rows of a config."""
    tokens, flops = samples["tokens_per_step"], samples["flops_per_step"]
    fma = c.median(p["fma_gflops"] for p in samples["peak"])
    systems = [s for s in ("moe-train", *PYTORCH) if s in samples]
    rate, rows = {}, []
    for s in systems:
        rate[s] = tokens / c.median(x for turn in samples[s] for x in turn["seconds"])
        rss = max(turn["peak_rss"] for turn in samples[s]) / 2**30
        percent = rate[s] / tokens * flops / 1e9 / fma * 100
        cpu = c.median(x for turn in samples[s] for x in turn["cpu"])
        rows.append(c.row(f"{config}: {s}", rate[s], "tokens/s", "", None,
                          f"{percent:.1f} % of the FMA peak of {fma:.0f}, peak RSS {rss:.2f} GiB, {cpu:.2f} s of processor time a step"))
    of_peak = 0.72 * fma * 1e9 / (flops / tokens)
    if len(systems) == 1:
        rows.append(c.row(f"{config}: of the FMA peak", rate["moe-train"] * flops / tokens / 1e7 / fma, "%", ">= 72 %, or 1.5 x PyTorch",
                          True if rate["moe-train"] >= of_peak else None, "PyTorch was not measured"))
        return rows
    best = max(PYTORCH, key=lambda s: rate[s])
    wanted = min(1.5 * rate[best], of_peak)
    which = f"1.5 x {best}" if wanted < of_peak else "72 % of the FMA peak"
    rows.append(c.row(f"{config}: moe-train / {best}", rate["moe-train"] / rate[best], "x", f">= {wanted / rate[best]:.2f} ({which})",
                      rate["moe-train"] >= wanted))
    return rows


def main():
    a = c.parser(__doc__, 3)
    a.add_argument("--peers", type=c.pathlib.Path, help="folder made by peers/setup.sh")
    a.add_argument("--config", default="tiny,small,fine", help="presets (default tiny,small,fine)")
    a.add_argument("--warmup", type=int, default=WARMUP, help=f"steps of a turn before it counts, at least 1 (default {WARMUP})")
    a.add_argument("--steps", type=int, help="timed steps of a turn (default 5 for tiny, else 2)")
    a.add_argument("--malloc", choices=["auto", "libc", "tcmalloc"], default="auto", help="of PyTorch; auto: tcmalloc where it is installed")
    args = c.parse(a)
    args.warmup = max(1, args.warmup)
    if args.peers and not (args.peers / "env.sh").exists():
        c.fail(f"{args.peers}/env.sh is not there; make it with bench/train/peers/setup.sh {args.peers}")
    args.preload = allocator(args.malloc)
    samples, rows = {}, []
    with c.scratch(args) as folder:
        for config in args.config.split(","):
            samples[config] = measure(args, config, folder)
            rows += judge(config, samples[config])
    c.write_result(args, "peers", rows, samples, malloc=args.preload or "libc", peers=bool(args.peers))


if __name__ == "__main__":
    main()
