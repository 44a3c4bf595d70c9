#!/usr/bin/env python3
"""A step under a memory limit (the whole process, in a cgroup) against what the processor and the drive allow.

    limit.py BUILD [--config small] [--host-memory 1536MiB] [--peers DIR]

    factor = step / sum over phases of max(compute of the phase without limit, least bytes of the phase / fio at that mix)

In turn: a run without limit, fio, the run under the limit, fio. The least bytes are those of `moe-train check`: experts and activations, every
expert touched. Phases: forward, backward, and the rest (norm, dense AdamW), which moves nothing. A model that does not fit into this machine's
memory is run without limit at two smaller depths, and the time of a phase is continued to the full depth in a straight line."""
import json
import shutil

import common as c
import peers

PHASES = ("forward", "backward")
WARMUP = peers.WARMUP  # steps without limit before they count


def phases_of(m):
    """Seconds of one line of metrics.jsonl: the phases, what is left, and AdamW of experts (inside a phase)."""
    rest = m["seconds"] - m["forward_seconds"] - m["backward_seconds"]
    return {"forward": m["forward_seconds"], "backward": m["backward_seconds"], "rest": rest, "adamw": max(0.0, m["update_seconds"] - rest)}


def depths(args, config, layers):
    """Depths to run without limit: all layers, or two that fit into this machine."""
    def fits(n):
        plan = c.check(args.build, config, [f"model.num_hidden_layers={n}"], "1TiB")
        return plan["memory"]["together"] < 0.85 * c.available_bytes()
    if args.unlimited == "whole" or (args.unlimited == "auto" and fits(layers)):
        return [layers]
    high = max((n for n in range(2, layers // 2 + 1) if fits(n)), default=0)
    if high == 0:
        c.fail("not even two layers fit into this machine's memory without a limit")
    return [max(1, high // 3), high]


def compute_of(turns, layers):
    """Medians of the phases without limit; two depths give a line."""
    at = {n: {k: c.median(phases_of(m)[k] for m in steps) for k in ("forward", "backward", "rest", "adamw")} for n, steps in turns.items()}
    if layers in at:
        return at[layers]
    low, high = sorted(at)
    return {k: at[high][k] + (at[high][k] - at[low][k]) / (high - low) * (layers - high) for k in at[high]}


def ideal(way, phases, compute, rate):
    """-> ({phase: seconds at the limit}, {phase: what binds}). AdamW of experts is part of forward, or of backward when it is speculative."""
    moved = compute["adamw"] if way == "speculative" else 0.0
    work = {"forward": compute["forward"] - moved, "backward": compute["backward"] + moved}
    seconds, binds = {"rest": compute["rest"]}, {}
    for p in PHASES:
        disk = (phases[p]["read"] + phases[p]["write"]) / rate[p] if rate[p] else 0.0
        seconds[p], binds[p] = max(work[p], disk), "compute" if work[p] >= disk else "disk"
    return seconds, binds


def pick_update(args, config):
    """(update, plan): speculative updates need a third place on the drive for every expert; without the room they are left out."""
    for update in ([args.update] if args.update != "auto" else ["auto", "deferred"]):
        plan = c.check(args.build, config, [f"optimizer.update={update}"], args.host_memory)
        need, free = plan["disk"] + (3 << 30), shutil.disk_usage(args.scratch).free
        if need < free:
            return update, plan
        c.say(f"{args.scratch}: {free / 2**30:.1f} GiB free, optimizer.update={update} needs {need / 2**30:.1f} GiB (with fio's file)")
    c.fail("the drive is too small; --scratch names another one")


def measure(args, config, plan, folder):
    layers = args.layers
    vocab, tokens = c.shape(args.build, config)
    sets = [f"data.path={c.tokens_file(folder, vocab, tokens * (max(args.warmup, WARMUP) + args.steps) + 1)}"]
    update = f"optimizer.update={args.update}"
    fio = c.Fio(folder)
    s = {"tokens_per_step": tokens, "plan": plan["text"], "unlimited": {n: [] for n in depths(args, config, layers)}, "limited": [], "peaks": [],
         "fio": {w: {p: [] for p in PHASES} for w in plan["ways"]}, "pytorch": []}

    def ask_drive():
        for way, phases in plan["ways"].items():
            for p in PHASES:
                read, write = phases[p]["read"], phases[p]["write"]
                if read + write > 0:
                    s["fio"][way][p].append(fio.mix(read, write, args.fio_seconds))

    for r in range(args.rounds):
        for n in s["unlimited"]:
            got = c.train(args, config, folder, WARMUP + args.steps, [*sets, f"model.num_hidden_layers={n}"])["steps"][WARMUP:]
            s["unlimited"][n] += got
            c.say(f"round {r + 1} without limit, {n} layers: {' '.join('%.2f' % m['seconds'] for m in got)} s")
        ask_drive()
        got = c.train(args, config, folder, args.warmup + args.steps, [*sets, update], args.host_memory, c.host_mib(args.host_memory), finish=True)
        s["limited"] += got["steps"][args.warmup:]
        s["peaks"].append(dict(got["limit"], rss=got["peak_rss"]))
        c.say(f"round {r + 1} in {args.host_memory}: {' '.join('%.2f' % m['seconds'] for m in got['steps'])} s, {got['limit']}")
        ask_drive()
        if args.peers:
            s["pytorch"].append(peers.pytorch(args, args.config, "hand", WARMUP, args.steps))
            c.say(f"round {r + 1} PyTorch without limit: {s['pytorch'][-1]['seconds']} s")
    return s


def ways_rows(args, plan, s, step):
    """The factor for each way of updating that may have been used, the strictest first."""
    compute, got = compute_of(s["unlimited"], args.layers), {k: c.median(phases_of(m)[k] for m in s["limited"]) for k in (*PHASES, "rest")}
    moved = c.median(m["ssd_read_bytes"] + m["ssd_write_bytes"] for m in s["limited"])
    found = []
    for way, phases in plan["ways"].items():
        if args.update not in ("auto", way):
            continue
        rate = {p: c.median(s["fio"][way][p]) if s["fio"][way][p] else None for p in PHASES}
        seconds, binds = ideal(way, phases, compute, rate)
        least = sum(phases[p]["read"] + phases[p]["write"] for p in PHASES)
        rows = [c.row(f"{args.config} in {args.host_memory}: step / limit of the machine ({way})", step / sum(seconds.values()), "x", "<= 1.2",
                      step <= 1.2 * sum(seconds.values()), f"step {step:.2f} s, limit {sum(seconds.values()):.2f} s")]
        for p in PHASES:
            gb = (phases[p]["read"] + phases[p]["write"]) / 1e9
            at = f"{rate[p] / 1e9:.2f} GB/s" if rate[p] else "no traffic"
            rows.append(c.row(f"    {p}", got[p], "s", f"limit {seconds[p]:.2f} s ({binds[p]})", None,
                              f"compute {compute[p]:.2f} s, {gb:.2f} GB at {at} (fio)"))
        rows.append(c.row("    the rest", got["rest"], "s", f"limit {seconds['rest']:.2f} s (compute)", None))
        if least > 0:
            rows.append(c.row("    bytes moved / least bytes", moved / least, "x", "<= 1.03", moved <= 1.03 * least, f"{moved / 1e9:.2f} GB a step"))
        found.append((sum(seconds.values()), rows, rate))
    found.sort(key=lambda f: f[0])
    return found


def peer_rows(args, s, rate, here):
    """Against PyTorch without limit and DeepSpeed: a target only where the drive does 1 GB/s."""
    fast = bool(rate) and min(rate) >= 1e9
    rows = []
    if s["pytorch"]:
        theirs = s["tokens_per_step"] / c.median(x for t in s["pytorch"] for x in t["seconds"])
        rows.append(c.row(f"{args.config} in {args.host_memory} / PyTorch without limit", here / theirs, "x", ">= 1 where fio >= 1.0 GB/s",
                          here >= theirs if fast else None, f"PyTorch {theirs:.0f} tokens/s"))
    recorded = json.loads((c.HERE / "peers" / "recorded.json").read_text())
    fma = c.peak(args.build, args.threads)["fma_gflops"]
    same = abs(fma / recorded["machine"]["fma_gflops"] - 1) < 0.1
    other = f"recorded on another machine: {recorded['machine']['cpu']}, {recorded['machine']['fma_gflops']} GFLOP/s"
    where = "recorded on a machine like this" if same else other
    known = [r for r in recorded["rows"] if r["config"] == args.config]
    if not s["pytorch"]:
        known_hand = max((r["tokens_per_second"] for r in known if r["variant"] == "hand"), default=None)
        if known_hand:
            rows.append(c.row(f"{args.config} in {args.host_memory} / PyTorch without limit", here / known_hand, "x", ">= 1 where fio >= 1.0 GB/s",
                              here >= known_hand if fast and same else None, f"{known_hand} tokens/s, {where}"))
    disk = [r for r in known if r["variant"] == "ZeRO-3, optimizer and parameters on disk"]
    if disk:
        theirs = disk[0]["tokens_per_second"]
        rows.append(c.row(f"{args.config} in {args.host_memory} / DeepSpeed on disk", here / theirs, "x", ">= 1.6 where fio >= 1.0 GB/s",
                          here >= 1.6 * theirs if fast and same else None, f"{theirs} tokens/s in {disk[0]['peak_rss_gib']} GiB, {where}"))
    return rows


def main():
    a = c.parser(__doc__, 3)
    a.add_argument("--config", default="small", help="a preset (default small)")
    a.add_argument("--host-memory", default="1536MiB", help="the limit (default 1536MiB)")
    a.add_argument("--update", choices=["auto", "deferred", "speculative"], default="auto", help="optimizer.update of the limited run")
    a.add_argument("--warmup", type=int, help="steps before it counts (default 6 for auto, which looks at 4 steps before it speculates, else 3)")
    a.add_argument("--steps", type=int, default=2, help="timed steps of a turn (default 2)")
    a.add_argument("--fio-seconds", type=int, default=5, help="of each mix, before and after the limited run (default 5)")
    a.add_argument("--unlimited", choices=["auto", "whole", "depths"], default="auto", help="how compute without limit is found (default auto)")
    a.add_argument("--peers", type=c.pathlib.Path, help="folder made by peers/setup.sh: PyTorch without limit takes its turn too")
    args = c.parse(a)
    args.preload = peers.allocator("auto")
    args.scratch.mkdir(parents=True, exist_ok=True)
    config = c.PRESETS / f"{args.config}.yaml"
    args.layers = c.number(args.build, config, "num_hidden_layers")
    args.update, plan = pick_update(args, config)
    args.warmup = args.warmup if args.warmup is not None else 6 if args.update == "auto" else 3
    with c.scratch(args) as folder:
        s = measure(args, config, plan, folder)
    step = c.median(m["seconds"] for m in s["limited"])
    here = s["tokens_per_step"] / step
    found = ways_rows(args, plan, s, step)
    most, kills, kind = max(p["peak_mib"] for p in s["peaks"]), sum(p["oom_kills"] for p in s["peaks"]), s["peaks"][0]["kind"]
    rows = [c.row(f"{args.config} in {args.host_memory}: tokens/s", here, "tokens/s", "", None),
            c.row(f"{args.config} in {args.host_memory}: OOM kills", kills, "", "0", kills == 0, f"{kind}: {most} MiB at most, swap off"),
            *[r for f in found for r in f[1]], *peer_rows(args, s, [x for x in found[0][2].values() if x], here)]
    c.write_result(args, f"limit-{args.config}", rows, s, host_memory=args.host_memory, update=args.update)


if __name__ == "__main__":
    main()
