#!/usr/bin/env python3
"""moe-serve beside llama.cpp: the same file, the same threads, greedy, the same memory, in turn.

    peers.py BUILD --llama DIR [--models olmoe,qwen3moe,smollm2] [--only memory,half,half8,quarter,ready]

DIR is what peers/setup.sh made. memory: no limit, both warm, random tokens; llama.cpp by its own llama-bench (one stream) and
llama-batched-bench (eight) with repacked weights; of the dense model also with plain ones, the faster way counts. half, quarter: a cgroup of half
or a quarter of the file + what llama.cpp holds besides its file, page cache included (half8: eight streams); llama-server with mmap and
128 KiB of read-ahead (the only way in which it starts at all), the same prompts for both. There llama.cpp, a server that stays, generates 24
tokens (eight streams: 8 each) and moe-serve, a new process each time, 64 (24 each). fio reads the same file between the turns. The bound under a
limit is min(speed in memory, fio's rate / bytes of the experts that our policy misses on this very routing)."""
import contextlib
import json
import os
import pathlib
import shutil
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
import measure as c  # noqa: E402
from llama import Server, prompt, read_ahead  # noqa: E402

PREFILL, PROMPT = 512, 64  # tokens; PROMPT as in engine/serve/command_bench.c
MOE = ("olmoe", "qwen3moe")
# What llama.cpp holds besides the pages of the file + 64 MiB (measured once, MiB; one stream, eight streams), so that both get the same.
BESIDE = {"olmoe": (279, 407), "qwen3moe": (224, 268)}
# To reach, as multiples of llama.cpp.
REACH = {("memory", 1): 1.4, ("memory", 8): 2.0, ("half", 1): 4.0, ("half8", 8): 4.0, ("quarter", 1): 2.5}
REACH_PREFILL = {"memory": 1.6, "half": 1.6}
REACH_DENSE = {"decode": 1.1, "prefill": 1.3}
SHARE = {"half": 0.5, "half8": 0.5, "quarter": 0.25}


def ours(args, model, limit_mib=None, **words):
    """One `moe-serve bench`; with a limit: in a cgroup, told of it."""
    command = [args.build / "bin/moe-serve", "bench", model, "--json", "--threads", args.threads]
    for k, v in words.items():
        command += [f"--{k}", v]
    report = args.folder / "limit"
    if limit_mib:
        command = [c.LIMIT, limit_mib, *command, "--host-memory", f"{limit_mib}MiB"]
    out = subprocess.run([str(x) for x in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                         env=dict(os.environ, LIMIT_REPORT=str(report)))
    if out.returncode != 0:
        c.fail(f"moe-serve bench: exit status {out.returncode}: {out.stderr.strip()[-1000:]}")
    r = json.loads(out.stdout)
    if limit_mib:
        kind, peak, kills = report.read_text().split()
        r["limit"] = {"kind": kind, "mib": limit_mib, "peak_mib": int(peak), "oom_kills": int(kills)}
    return r


def fio(args, model):
    """Bytes per second of random 1 MiB reads of the model's file, 32 in flight."""
    for engine in ("io_uring", "libaio"):
        out = subprocess.run(["fio", "--name=r", f"--filename={model}", "--readonly", f"--ioengine={engine}", "--rw=randread", "--bs=1m",
                              "--iodepth=32", "--direct=1", f"--runtime={args.fio_seconds}", "--time_based", "--output-format=json"],
                             stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        if out.returncode == 0:
            return json.loads(out.stdout[out.stdout.index("{"):])["jobs"][0]["read"]["bw_bytes"]
    c.fail(f"fio: {out.stderr.strip()}")


def llama_bench(args, model, way, decode):
    """Tokens per second of one stream by llama-bench: its own warm-up, then one sample of each."""
    out = subprocess.run([args.llama / "build/bin/llama-bench", "-m", model, "-t", str(args.threads), "--repack", way, "-p", str(PREFILL), "-n",
                          str(decode), "-r", "1", "-o", "json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if out.returncode != 0:
        c.fail(f"llama-bench: exit status {out.returncode}: {out.stderr.strip()[-1000:]}")
    return {"prefill" if r["n_prompt"] else "decode": r["avg_ts"] for r in json.loads(out.stdout)}


def llama_batched(args, model, way, streams, decode):
    """Tokens per second of streams that decode together, by llama-batched-bench."""
    out = subprocess.run([args.llama / "build/bin/llama-batched-bench", "-m", model, "-t", str(args.threads), "-c", str(256 * streams), "-npp", str(PROMPT),
                          "-ntg", str(decode), "-npl", str(streams), "--output-format", "jsonl", "--repack" if way == "1" else "--no-repack"],
                         stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    lines = [json.loads(x) for x in out.stdout.splitlines() if x.startswith("{")]
    if out.returncode != 0 or not lines:
        c.fail(f"llama-batched-bench: exit status {out.returncode}: {out.stderr.strip()[-1000:]}")
    return {"decode": lines[-1]["speed_tg"]}


def in_memory(args, model, streams, ways, decode):
    """-> {way: samples}; ours takes its turn once in a round."""
    found = {f"repack {w}": {"llama": [], "ours": []} for w in ways}
    for seed in range(1, args.rounds + 1):
        mine = ours(args, model, warmup=PREFILL, prefill=PREFILL if streams == 1 else 0, decode=decode, streams=streams, seed=seed)
        for w in ways:
            s = found[f"repack {w}"]
            s["llama"].append(llama_bench(args, model, w, decode) if streams == 1 else llama_batched(args, model, w, streams, decode))
            s["ours"].append(mine)
            c.say(f"  repack {w} {s['llama'][-1]}  ours {brief(mine)}")
    return found


def brief(r):
    p = r.get("prefill")
    return {**({"prefill": round(p["tokens_per_second"], 1)} if p else {}), **{f"x{d['streams']}": round(d["tokens_per_second"], 2) for d in r["decode"]}}


def under_limit(args, model, streams, mib, prefill, decode, cap=20.0):
    """One server and its turns: the peer, the drive, ours."""
    drop_caches()  # pages that somebody else has read are not counted
    s = {"llama": [], "ours": [], "fio": []}
    with read_ahead(model, 128):
        server = Server(args.llama, model, args.folder, args.threads, streams, 1024 if streams == 1 else 160 * streams, ["--no-repack"], mib)
        try:
            if not server.ready:
                c.fail(f"llama-server ended with {server.child.returncode}; see {args.folder}/llama.log")
            server.generate([prompt(0, 1, PROMPT, server.vocabulary)], 2, cap)  # pages that every token needs are there
            for seed in range(1, args.rounds + 1):
                r = {"decode": server.generate([prompt(seed, streams << 8 | i, PROMPT, server.vocabulary) for i in range(streams)], decode, cap)["decode"]}
                if prefill:
                    r["prefill"] = server.generate([prompt(seed, 0, PREFILL, server.vocabulary)], 1)["prefill"]
                s["llama"].append(r)
                with server.asleep():
                    s["fio"].append(fio(args, model))
                    s["ours"].append(ours(args, model, mib, prefill=PREFILL if prefill else 0, decode=64 if streams == 1 else 24, streams=streams, seed=seed))
                c.say(f"  {r}  ours {brief(s['ours'][-1])}  fio {s['fio'][-1] / 1e9:.2f} GB/s")
        finally:
            s["llama_ready"], s["llama_limit"] = server.ready, server.close()
    return {"mmap": s}


def rate(samples, key):
    got = [x[key] for x in samples if x.get(key)]
    return c.median(got) if got else None


def our_rate(turn, what):
    return turn["prefill"]["tokens_per_second"] if what == "prefill" else turn["decode"][0]["tokens_per_second"]


def compare(name, found, what, reach):
    """The row of one figure, against the peer's faster way: medians, and the ratio of each turn's pair."""
    best = max(found, key=lambda w: rate(found[w]["llama"], what) or 0)
    s = found[best]
    pairs = [our_rate(o, what) / l[what] for o, l in zip(s["ours"], s["llama"]) if l.get(what)]
    ratio = c.median(pairs)
    note = f"moe-serve {c.median(our_rate(o, what) for o in s['ours']):.3g} tok/s, llama.cpp {best} {rate(s['llama'], what):.3g}; {min(pairs):.2f} to {max(pairs):.2f}"
    return c.row(name, ratio, "x", f">= {reach} x", ratio >= reach, note)


def bound_row(name, s, in_memory):
    """Achieved speed over min(speed in memory, fio / missed bytes), turn by turn."""
    shares = []
    for o, f in zip(s["ours"], s["fio"]):
        d = o["decode"][0]
        missed = d["bytes_per_token"] - d["wasted_bytes"] / d["tokens"]
        shares.append(d["tokens_per_second"] / min(in_memory, f / missed))
    share, hits = c.median(shares), c.median(o["decode"][0]["hit_rate"] for o in s["ours"])
    return c.row(name, share, "of bound", ">= 0.8", share >= 0.8,
                 f"hits {hits * 100:.1f} %, fio {c.median(s['fio']) / 1e9:.2f} GB/s; {min(shares):.2f} to {max(shares):.2f}")


def limit_row(name, found):
    runs = [o["limit"] for w in found.values() for o in w["ours"]]
    peak, mib, kills = max(r["peak_mib"] for r in runs), runs[0]["mib"], sum(r["oom_kills"] for r in runs)
    return c.row(name, peak, f"of {mib} MiB", "inside, no kill", peak <= mib and kills == 0, f"{kills} OOM kills, {runs[0]['kind']}")


def limits(model, name, what):
    bytes_ = model.stat().st_size * SHARE[what]
    return [int(bytes_ / 2**20) + b for b in BESIDE[name]]


def measure_moe(args, model, name, rows, samples):
    speed = {}
    if "memory" in args.only:
        for streams in (1, 8):
            c.say(f"{name}: in memory, {streams} streams")
            f = samples[f"memory x{streams}"] = in_memory(args, model, streams, ["1"], 32)
            rows.append(compare(f"{name}, decode, {streams} streams, enough memory", f, "decode", REACH["memory", streams]))
            if streams == 1:
                rows.append(compare(f"{name}, prefill of {PREFILL}, enough memory", f, "prefill", REACH_PREFILL["memory"]))
            speed[streams] = c.median(our_rate(o, "decode") for o in f["repack 1"]["ours"])
    for what, streams in (("half", 1), ("half8", 8), ("quarter", 1)):
        if what not in args.only:
            continue
        if streams not in speed:
            speed[streams] = c.median(our_rate(ours(args, model, warmup=PREFILL, prefill=0, decode=32, streams=streams), "decode") for _ in range(3))
        mib, part = limits(model, name, what)[streams == 8], "a quarter of the file" if what == "quarter" else "half the file"
        c.say(f"{name}: {what}, {mib} MiB, {streams} streams")
        f = samples[f"{what} x{streams}"] = under_limit(args, model, streams, mib, what == "half", 24 if streams == 1 else 8)
        title = f"{name}, decode, {streams} streams, {part}"
        rows.append(compare(title, f, "decode", REACH[what, streams]))
        rows.append(bound_row(f"{title}: share of the policy's bound", f["mmap"], speed[streams]))
        rows.append(limit_row(f"{title}: peak memory of the cgroup", f))
        if what == "half":
            rows.append(compare(f"{name}, prefill of {PREFILL}, {part}", f, "prefill", REACH_PREFILL[what]))
    if "ready" in args.only:
        measure_ready(args, model, name, rows, samples)


def drop_caches():
    os.sync()
    with contextlib.suppress(OSError):
        pathlib.Path("/proc/sys/vm/drop_caches").write_text("3\n")


def measure_ready(args, model, name, rows, samples):
    """From nothing in memory, half the file as the limit. llama.cpp: when /health answers."""
    c.say(f"{name}: ready")
    mib = limits(model, name, "half")[0]
    s = samples["ready"] = {"ours": [], "fio": [], "llama": []}
    for _ in range(args.rounds):
        drop_caches()
        s["fio"].append(fio(args, model))
        s["ours"].append(ours(args, model, mib, prefill=0, decode=1, streams=1))
    for _ in range(2):
        drop_caches()
        with read_ahead(model, 128):
            server = Server(args.llama, model, args.folder, args.threads, 1, 1024, ["--no-repack"], mib)
            s["llama"].append(server.ready)
            server.close()
    over = [o["ready_seconds"] - o["dense_bytes"] / f for o, f in zip(s["ours"], s["fio"])]
    rows.append(c.row(f"{name}, ready, over dense bytes / drive", c.median(over), "s", "<= 1 s", c.median(over) <= 1,
                      f"{c.median(o['ready_seconds'] for o in s['ours']):.2f} s for {s['ours'][0]['dense_bytes'] / 2**20:.0f} MiB; llama.cpp {c.median(s['llama']):.1f} s"))


def measure_dense(args, model, name, rows, samples):
    c.say(f"{name}: in memory")
    f = samples["memory x1"] = in_memory(args, model, 1, ["1", "0"], 128)
    for what in ("decode", "prefill"):
        rows.append(compare(f"{name}, {what}", f, what, REACH_DENSE[what]))


def merged(path, rows, samples):
    """With what an earlier run of other parts left in the file."""
    try:
        old = json.loads(path.read_text())
    except (OSError, ValueError):
        return rows, samples
    mine = {r["measure"] for r in rows}
    return [r for r in old["rows"] if r["measure"] not in mine] + rows, {**old["samples"], **samples}


def main():
    a = c.parser(__doc__, 5)
    a.add_argument("--llama", type=pathlib.Path, required=True, metavar="DIR", help="made by peers/setup.sh")
    a.add_argument("--models", default="olmoe,qwen3moe,smollm2", help="which (default: all)")
    a.add_argument("--only", default="memory,half,half8,quarter,ready", help="which parts (default: all); a part replaces its rows in the result")
    a.add_argument("--fio-seconds", type=int, default=3)
    args = c.parse(a, "moe-serve")
    args.only, out = args.only.split(","), args.out
    if shutil.which("fio") is None:
        c.fail("fio is not installed (Debian: apt install fio)")
    with c.scratch(args) as folder:
        args.folder = folder
        for name in args.models.split(","):
            model, rows, samples = args.llama / "models" / f"{name}.gguf", [], {}
            if not model.exists():
                c.fail(f"{model} is not there; peers/setup.sh makes it")
            (measure_moe if name in MOE else measure_dense)(args, model, name, rows, samples)
            args.out = out or c.RESULTS / f"serve-{name}.json"
            rows, samples = merged(args.out, rows, samples)
            c.write_result(args, f"serve-{name}", rows, samples, model_bytes=model.stat().st_size)


if __name__ == "__main__":
    main()
