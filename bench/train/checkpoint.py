#!/usr/bin/env python3
"""How long a checkpoint stops training: checkpoint_seconds against (dirty + dense bytes) / disk rate + 100 ms.

    checkpoint.py BUILD [--config tiny:384MiB,small:1536MiB]

A checkpoint after every step. Its bytes are what the process writes (/proc/PID/io) while it lasts; the disk rate is fio writing about as many
bytes, before and after. A checkpoint flushes nothing that is pending, so its bytes are bounded by RAM, not by the model."""
import common as c


def parse_configs(text):
    return [tuple(x.split(":", 1)) if ":" in x else (x, None) for x in text.split(",")]


def measure(args, name, host, folder):
    config = c.PRESETS / f"{name}.yaml"
    vocab, tokens = c.shape(args.build, config)
    steps = args.warmup + args.steps
    sets = [f"data.path={c.tokens_file(folder, vocab, tokens * steps + 1)}", "checkpoint.every=1", "optimizer.update=deferred"]
    plan = c.check(args.build, config, sets, host)
    dense = plan["memory"]["dense part of checkpoints"] / 2  # checkpoint.keep + 1 places
    s = {"dense_bytes": dense, "plan": plan["text"], "checkpoints": [], "disk": []}
    fio = c.Fio(folder, 1024)
    size = 1024
    for r in range(args.rounds):
        s["disk"].append(fio.write(size))
        got = c.train(args, config, folder, steps, sets, host, trace=True)["steps"]
        for m in got[args.warmup:]:
            s["checkpoints"].append({"seconds": m["checkpoint_seconds"], "bytes": m["checkpoint_bytes"], "step": m["step"] - 1})
        size = max(64, min(1024, c.median(x["bytes"] for x in s["checkpoints"]) / 1e6))
        s["disk"].append(fio.write(size))
        c.say(f"{name} round {r + 1}: {' '.join('%.3f s %.2f GB' % (x['seconds'], x['bytes'] / 1e9) for x in s['checkpoints'][-args.steps:])}, "
              f"drive {s['disk'][-1] / 1e9:.2f} GB/s")
    return s


def judge(name, host, s):
    rate = c.median(s["disk"])
    over = [x["seconds"] - x["bytes"] / rate for x in s["checkpoints"]]
    pause, size = c.median(x["seconds"] for x in s["checkpoints"]), c.median(x["bytes"] for x in s["checkpoints"])
    where = f"{name}{' in ' + host if host else ''}"
    return [c.row(f"{where}: checkpoint, over bytes / disk rate", c.median(over) * 1e3, "ms", "<= 100 ms", c.median(over) <= 0.1,
                  f"pause {pause:.3f} s for {size / 1e9:.3f} GB, {s['dense_bytes'] / 1e9:.3f} of it dense, at {rate / 1e9:.2f} GB/s; "
                  f"worst {max(over) * 1e3:.0f} ms of {len(over)}")]


def main():
    a = c.parser(__doc__, 2)
    a.add_argument("--config", default="tiny:384MiB,small:1536MiB", help="presets with their memory limits (default tiny:384MiB,small:1536MiB)")
    a.add_argument("--warmup", type=int, default=2, help="steps before it counts, at least 1 (default 2)")
    a.add_argument("--steps", type=int, default=4, help="checkpoints of a turn (default 4)")
    args = c.parse(a)
    args.warmup = max(1, args.warmup)
    samples, rows = {}, []
    with c.scratch(args) as folder:
        for name, host in parse_configs(args.config):
            samples[name] = measure(args, name, host, folder)
            rows += judge(name, host, samples[name])
    c.write_result(args, "checkpoint", rows, samples, config=args.config)


if __name__ == "__main__":
    main()
