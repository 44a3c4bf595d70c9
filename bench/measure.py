"""What all benchmarks share: the machine, fio, the table of results and its files, scratch folders.
Owns scratch folders. One thread, standard library only.
Rule: a figure is a median of samples taken in turn with what it is compared with, and all samples are kept."""
import argparse
import contextlib
import datetime
import json
import os
import pathlib
import platform
import re
import shlex
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
RESULTS = pathlib.Path(os.environ.get("BENCH_RESULTS") or ROOT / "bench" / "results")
LIMIT = ROOT / "bench" / "demo" / "limit.sh"

median = statistics.median


def fail(sentence):
    sys.exit(f"{pathlib.Path(sys.argv[0]).name}: {sentence}")


def say(*words):
    print(*words, file=sys.stderr, flush=True)


# --- the machine ----------------------------------------------------------------------------------------------------------------

def first(path, pattern, default=""):
    try:
        m = re.search(pattern, pathlib.Path(path).read_text(), re.M)
        return m.group(1).strip() if m else default
    except OSError:
        return default


def machine():
    flags = first("/proc/cpuinfo", r"^flags\s*:(.*)$").split()
    return {
        "cpu": first("/proc/cpuinfo", r"^model name\s*:(.*)$"),
        "family_model": [first("/proc/cpuinfo", rf"^{k}\s*:(.*)$") for k in ("cpu family", "model")],
        "cpus": len(os.sched_getaffinity(0)),
        "isa": [f for f in ("avx2", "fma", "avx512f", "avx512_vnni", "amx_tile") if f in flags],
        "ram_gib": round(int(first("/proc/meminfo", r"^MemTotal:\s*(\d+)", "0")) / 2**20, 1),
        "kernel": platform.release(),
        "os": first("/etc/os-release", r'^PRETTY_NAME="?([^"\n]*)'),
        "load": os.getloadavg()[0],
    }


def available_bytes():
    return int(first("/proc/meminfo", r"^MemAvailable:\s*(\d+)", "0")) << 10


def wait_until_quiet(seconds):
    """Other work on the processors is in every figure. Waits for the load to fall, at most `seconds`, then says what it is."""
    until = time.monotonic() + seconds
    while os.getloadavg()[0] > 1 and time.monotonic() < until:
        time.sleep(5)
    if os.getloadavg()[0] > 1:
        say(f"warning: load average {os.getloadavg()[0]:.1f}: other programs are running, the figures suffer")


# --- the command line and the result --------------------------------------------------------------------------------------------

def parser(doc, rounds):
    a = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("build", type=pathlib.Path, metavar="BUILD", help="build folder of CMake")
    a.add_argument("--rounds", type=int, default=rounds, help=f"how often everything takes its turn (default {rounds})")
    a.add_argument("--threads", type=int, default=0, help="compute threads; 0: one for each processor")
    a.add_argument("--scratch", type=pathlib.Path, help="folder on the drive to use; not tmpfs (default: BUILD/bench-scratch)")
    a.add_argument("--out", type=pathlib.Path, help="the JSON file (default: bench/results/NAME.json)")
    a.add_argument("--quiet-wait", type=float, default=60, metavar="S", help="wait at most S seconds for other programs to end (default 60)")
    return a


def parse(a, program="moe-train"):
    args = a.parse_args()
    args.build = args.build.resolve()
    if not (args.build / "bin" / program).exists():
        fail(f"{args.build}/bin/{program} is not there; build first: make")
    args.threads = args.threads or len(os.sched_getaffinity(0))
    args.scratch = (args.scratch or args.build / "bench-scratch").resolve()
    args.machine = machine()
    wait_until_quiet(args.quiet_wait)
    return args


def commit():
    out = subprocess.run(["git", "-C", ROOT, "rev-parse", "--short", "HEAD"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    return out.stdout.strip()


def row(measure, value, unit, target, reached, note=""):
    """One line of the table of results. reached: True, False, or None where there is nothing to reach."""
    return {"measure": measure, "value": value, "unit": unit, "target": target, "reached": reached, "note": note}


def save(path, name, command, on, settings, rows, samples):
    """JSON with everything, the table on stdout."""
    path.parent.mkdir(parents=True, exist_ok=True)
    result = {"benchmark": name, "command": command, "commit": commit(),
              "when": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"), "machine": on, "settings": settings,
              "rows": rows, "samples": samples}
    lines = {k: json.dumps(v) for k, v in result.items()}
    lines["rows"] = "[\n  " + ",\n  ".join(map(json.dumps, rows)) + "\n ]"
    path.write_text("{\n" + ",\n".join(f' "{k}": {v}' for k, v in lines.items()) + "\n}\n")
    print_rows(rows)
    say(f"written to {path}")


def write_result(args, name, rows, samples, **settings):
    command = shlex.join([pathlib.Path(sys.argv[0]).name, *sys.argv[1:]])
    save(args.out or RESULTS / f"{name}.json", name, command, args.machine, {"threads": args.threads, "rounds": args.rounds, **settings}, rows, samples)


def print_rows(rows, file=None):
    for r in rows:
        mark = {True: "reached", False: "NOT reached", None: ""}[r["reached"]]
        value = f"{r['value']:.4g}" if isinstance(r["value"], float) else str(r["value"])
        print(f"{r['measure']:<58} {value:>9} {r['unit']:<12} {r['target']:<26} {mark:<12} {r['note']}".rstrip(), file=file, flush=True)


@contextlib.contextmanager
def scratch(args):
    """A new folder on the drive, removed at the end however the script ends."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
    args.scratch.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=args.scratch, ignore_cleanup_errors=True) as d:
        yield pathlib.Path(d)


# --- fio ------------------------------------------------------------------------------------------------------------------------

class Fio:
    """The drive at this moment, at a mix of bytes. Requests as the store makes them: 1 MiB, 16 in flight, past the page cache."""

    def __init__(self, folder, size_mib=2048, block="1m", depth=16):
        if shutil.which("fio") is None:
            fail("fio is not installed (Debian: apt install fio)")
        self.file, self.common, self.engine = folder / "fio.bin", [f"--bs={block}", f"--iodepth={depth}", f"--size={size_mib}m"], None
        for _ in range(2):  # twice: no block is new
            self._run(["--rw=write", "--refill_buffers"])

    def _run(self, words):
        """Every way that works here, the fastest first: registered buffers need locked memory, io_uring may be forbidden."""
        ways = [["--ioengine=io_uring", "--fixedbufs", "--registerfiles"], ["--ioengine=io_uring"], ["--ioengine=libaio"]]
        for way in [self.engine] if self.engine else ways:
            out = subprocess.run(["fio", "--name=bench", f"--filename={self.file}", "--direct=1", *way, *self.common, *words,
                                  "--output-format=json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            if out.returncode == 0:
                self.engine = way
                job = json.loads(out.stdout[out.stdout.index("{"):])["jobs"][0]
                return {k: (job[k]["io_bytes"], job[k]["runtime"] / 1e3) for k in ("read", "write")}
        fail(f"fio: {out.stderr.strip() or out.stdout.strip()}")

    def mix(self, read, write, seconds):
        """Bytes per second, both directions together, at the proportion of the two."""
        part = round(100 * read / (read + write))
        how = ["--rw=randread"] if part == 100 else ["--rw=randwrite"] if part == 0 else ["--rw=randrw", f"--rwmixread={part}"]
        got = self._run([*how, "--norandommap", "--time_based", f"--runtime={seconds}"])
        return (got["read"][0] + got["write"][0]) / max(got["read"][1], got["write"][1])

    def write(self, megabytes):
        """Bytes per second of writing so much in one go, with fdatasync at the end."""
        got = self._run(["--rw=write", f"--io_size={max(1, int(megabytes))}m", "--end_fsync=1"])
        return got["write"][0] / got["write"][1]


def host_mib(size):
    """"1536MiB" or "2GiB" -> MiB"""
    m = re.fullmatch(r"(\d+)(MiB|GiB|M|G)", size)
    if not m:
        fail(f"expected a size such as 1536MiB or 2GiB, got \"{size}\"")
    return int(m.group(1)) << (10 if m.group(2)[0] == "G" else 0)
