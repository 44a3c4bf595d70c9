"""bench/plot.py draws a run as the report writes it, and says what is wrong with one it cannot read. Exit 69: no matplotlib, skipped."""
import json
import os
import struct
import subprocess
import sys
import tempfile

PLOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "bench", "plot.py")


def plot(folder):
    return subprocess.run([sys.executable, PLOT, folder], capture_output=True, text=True)


def expect(condition, what):
    if not condition:
        sys.exit(f"test_plot: {what}")


def write_run(folder, steps, layers=2, experts=3):
    with open(os.path.join(folder, "metrics.jsonl"), "w") as f:
        for s in range(1, steps + 1):
            f.write(json.dumps({"step": s, "tokens": 64 * s, "loss": 5.0 / s, "lr": 1e-3, "tokens_per_second": 100, "cache_hit_rate": None,
                                "ssd_read_bytes": 10, "ssd_write_bytes": 5, "stall_seconds": 0.1, "seconds": 1,
                                "expert_load_max_over_mean": 1.5, **({"val_loss": 4.0} if s % 2 == 0 else {})}) + "\n")
        f.write('{"step": 9, "tor')  # a run that is writing
    with open(os.path.join(folder, "experts.bin"), "wb") as f:
        f.write(struct.pack("<8sIIQQ", b"MOEROWS1", layers, experts, 0, 0))
        for s in range(1, steps + 1):
            f.write(struct.pack("<Q6I", s, 1, 2, 3, 0, 0, 6))


with tempfile.TemporaryDirectory() as run:
    write_run(run, 4)
    done = plot(run)
    if done.returncode == 69:
        print(done.stderr.strip())
        sys.exit(69)
    expect(done.returncode == 0, done.stderr)
    for name in ("loss", "throughput", "tiers", "experts"):
        with open(os.path.join(run, "plots", name + ".png"), "rb") as f:
            expect(f.read(8) == b"\x89PNG\r\n\x1a\n", f"{name}.png is no picture")
    with open(os.path.join(run, "metrics.jsonl"), "a") as f:
        f.write('\n{"step": 10}\n')
    done = plot(run)
    expect(done.returncode == 65 and "metrics.jsonl:5:" in done.stderr, f"damage in the middle: {done.returncode} {done.stderr}")
    expect(plot(os.path.join(run, "none")).returncode == 66, "a folder that is missing")
