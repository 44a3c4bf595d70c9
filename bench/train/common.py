"""What the training benchmarks share: the machine, its FMA peak, fio, `moe-train check` and `moe-train run`, and how a result is written.
Owns scratch folders and the child processes; ends every child it started. One thread, standard library only.
Rule: a figure is a median of samples taken in turn with what it is compared with, and all samples are kept."""
import argparse
import array
import contextlib
import datetime
import json
import os
import pathlib
import platform
import random
import re
import shlex
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
PRESETS = ROOT / "models" / "presets"
RESULTS = pathlib.Path(os.environ.get("BENCH_RESULTS") or ROOT / "bench" / "results")
LIMIT = ROOT / "bench" / "demo" / "limit.sh"

median = statistics.median


def fail(sentence):
    sys.exit(f"{pathlib.Path(sys.argv[0]).name}: {sentence}")


def say(*words):
    print(*words, file=sys.stderr, flush=True)


# --- the machine ----------------------------------------------------------------------------------------------------------------

def _first(path, pattern, default=""):
    try:
        m = re.search(pattern, pathlib.Path(path).read_text(), re.M)
        return m.group(1).strip() if m else default
    except OSError:
        return default


def machine():
    flags = _first("/proc/cpuinfo", r"^flags\s*:(.*)$").split()
    return {
        "cpu": _first("/proc/cpuinfo", r"^model name\s*:(.*)$"),
        "family_model": [_first("/proc/cpuinfo", rf"^{k}\s*:(.*)$") for k in ("cpu family", "model")],
        "cpus": len(os.sched_getaffinity(0)),
        "isa": [f for f in ("avx2", "fma", "avx512f", "avx512_vnni", "amx_tile") if f in flags],
        "ram_gib": round(int(_first("/proc/meminfo", r"^MemTotal:\s*(\d+)", "0")) / 2**20, 1),
        "kernel": platform.release(),
        "os": _first("/etc/os-release", r'^PRETTY_NAME="?([^"\n]*)'),
        "load": os.getloadavg()[0],
    }


def available_bytes():
    return int(_first("/proc/meminfo", r"^MemAvailable:\s*(\d+)", "0")) << 10


def wait_until_quiet(seconds):
    """Other work on the processors is in every figure. Waits for the load to fall, at most `seconds`, then says what it is."""
    until = time.monotonic() + seconds
    while os.getloadavg()[0] > 1 and time.monotonic() < until:
        time.sleep(5)
    if os.getloadavg()[0] > 1:
        say(f"warning: load average {os.getloadavg()[0]:.1f}: other programs are running, the figures suffer")


def peak(build, threads):
    """FMA peak, read and write bandwidth of this moment, all threads: {"fma_gflops", "read_gbps", "write_gbps", ...}"""
    out = subprocess.run([build / "bench" / "train" / "bench_peak", "--threads", str(threads)], check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(out.stdout)


# --- the command line and the result --------------------------------------------------------------------------------------------

def parser(doc, rounds):
    a = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("build", type=pathlib.Path, metavar="BUILD", help="build folder of CMake (bin/moe-train, bench/train/bench_peak)")
    a.add_argument("--rounds", type=int, default=rounds, help=f"how often everything takes its turn (default {rounds})")
    a.add_argument("--threads", type=int, default=0, help="compute threads; 0: one for each processor")
    a.add_argument("--scratch", type=pathlib.Path, help="folder on the drive to use; not tmpfs (default: BUILD/bench-scratch)")
    a.add_argument("--out", type=pathlib.Path, help="the JSON file (default: bench/results/NAME.json)")
    a.add_argument("--quiet-wait", type=float, default=60, metavar="S", help="wait at most S seconds for other programs to end (default 60)")
    return a


def parse(a):
    args = a.parse_args()
    args.build = args.build.resolve()
    if not (args.build / "bin" / "moe-train").exists():
        fail(f"{args.build}/bin/moe-train is not there; build first: make")
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


# --- moe-train ------------------------------------------------------------------------------------------------------------------

def tokens_file(folder, vocab, count):
    """Uniform random token ids as a nanoGPT shard (uint16). Speed only: there is nothing to learn."""
    r = random.Random(99)
    path = folder / f"tokens-{vocab}.bin"
    array.array("H", (r.randrange(vocab) for _ in range(count))).tofile(path.open("wb"))
    return path


def number(build, config, key, sets=()):
    """A whole number of the configuration, as moe-train reads it."""
    out = subprocess.run([build / "bin" / "moe-train", "run", config, "--print-config", *[w for s in sets for w in ("--set", s)]],
                         stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if out.returncode != 0:
        fail(out.stderr.strip())
    return int(re.search(rf"^ *{key}: (\d+)", out.stdout, re.M).group(1))


def shape(build, config, sets=()):
    """-> (vocab_size, tokens_per_step)"""
    return number(build, config, "vocab_size", sets), number(build, config, "tokens_per_step", sets)


UNITS = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}


def _bytes(number, unit):
    return float(number) * UNITS[unit]


def check(build, config, sets=(), host=None):
    """What `moe-train check` says: memory by name, `full` where something is partly in RAM, GB and GFLOP of each phase, for each way."""
    command = [build / "bin" / "moe-train", "check", config, "--no-measure", *[w for s in sets for w in ("--set", s)]]
    out = subprocess.run([*command, *(["--host-memory", host] if host else [])], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if out.returncode != 0:
        fail(out.stderr.strip())
    plan = {"text": out.stdout, "memory": {}, "full": {}, "disk": 0.0, "ways": {}}
    for name, number, unit, note in re.findall(r"^  (\S.*?) {2,}([\d.]+) (B|[KMGT]iB) {3}(.*)$", out.stdout, re.M):
        plan["memory"].setdefault(name, _bytes(number, unit))
        whole = re.match(r"of ([\d.]+) ([KMGT]?i?B)", note)
        if whole:
            plan["full"][name] = _bytes(*whole.groups())
    disk = out.stdout.partition("\ndisk\n")[2].partition("\n\n")[0]
    plan["disk"] = sum(_bytes(*m) for m in re.findall(r" {2,}([\d.]+) (B|[KMGT]iB)", disk))
    way = None
    for line in out.stdout.splitlines():
        m = re.search(r"every expert touched, (deferred|speculative)", line)
        way = m.group(1) if m else way
        m = re.match(r"  (forward|backward) +read +([\d.]+) GB +write +([\d.]+) GB +activations +([\d.]+) GB +([\d.]+) GFLOP", line)
        if m and way:
            read, write, spill, gflop = (float(x) * 1e9 for x in m.groups()[1:])
            forward = m.group(1) == "forward"
            plan["ways"].setdefault(way, {})[m.group(1)] = {  # activations leave in forward and come back in backward
                "read": read + (0 if forward else spill), "write": write + (spill if forward else 0), "flops": gflop}
    plan["flops"] = sum(p["flops"] for p in plan["ways"]["deferred"].values())
    return plan


def _lines(path):
    try:
        text = path.read_text()
    except OSError:
        return []
    return [json.loads(l) for l in text[: text.rfind("\n") + 1].splitlines()]


def _io_written(pid):
    try:
        return int(_first(f"/proc/{pid}/io", r"^write_bytes: (\d+)", "0"))
    except (OSError, ValueError):
        return 0


def _peak_rss(pid):
    return int(_first(f"/proc/{pid}/status", r"^VmHWM:\s*(\d+)", "0")) << 10


def _cpu_seconds(pid):
    try:
        fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    except (OSError, IndexError):
        return None


class Trace:
    """Bytes written by a process over time, to tell what a checkpoint wrote: it begins when the line of its step is there, and the next line says
    how long it took."""

    def __init__(self):
        self.at, self.line = [], None

    def sample(self, pid):
        self.at.append((time.time(), _io_written(pid)))

    def arrived(self, lines, mtime):
        """Adds checkpoint_bytes of the checkpoint before each line that had one."""
        for m in lines[:1]:
            if self.line and m.get("checkpoint_seconds"):
                begin = max((w for t, w in self.at if t <= self.line), default=self.at[0][1])
                end = min((w for t, w in self.at if t >= self.line + m["checkpoint_seconds"]), default=self.at[-1][1])
                m["checkpoint_bytes"] = end - begin
        self.at, self.line = [x for x in self.at if x[0] >= mtime - 0.05], mtime


def train(args, config, folder, steps, sets=(), host=None, limit_mib=None, finish=False, trace=False):
    """Runs `steps` steps in a new run folder. -> {"steps": lines of metrics.jsonl with cpu_seconds (of all threads, so far), "peak_rss",
    "limit": {"kind", "peak_mib", "oom_kills"} or None}. finish: to its end, with the checkpoint that is made there; else the process is killed
    after the last step, which costs nothing. trace: lines with checkpoint_bytes, see Trace."""
    run, pid_file, report = folder / "run", folder / "pid", folder / "limit"
    shutil.rmtree(run, ignore_errors=True)
    sets = ["memory.ssd=[store/]", f"run.threads={args.threads}", *sets, f"train.steps={steps if finish else 10**6}"]
    command = ["bash", "-c", 'echo $$ >"$0"; exec "$@"', pid_file, args.build / "bin" / "moe-train", "run", config, "--run-dir", run, "--quiet",
               *[w for s in sets for w in ("--set", s)], *(["--host-memory", host] if host else [])]
    if limit_mib:
        command = [LIMIT, str(limit_mib), *command]
    pid_file.unlink(missing_ok=True)
    log = (folder / "log").open("w+")
    child = subprocess.Popen([str(c) for c in command], stdout=log, stderr=log, env=dict(os.environ, LIMIT_REPORT=str(report)), start_new_session=True)
    try:
        got, rss, pid = _watch(child, run / "metrics.jsonl", pid_file, None if finish else steps, Trace() if trace else None)
        ended = child.poll()
    finally:
        with contextlib.suppress(ProcessLookupError, ValueError, OSError):
            if child.poll() is None:  # limit.sh, where it is there, stays to report and to remove its cgroup
                os.kill(int(pid_file.read_text()), signal.SIGKILL)
        child.wait()
    if len(got) < steps or (ended is not None and not finish) or (finish and ended != 0):
        log.seek(0)
        fail(f"moe-train run ended with {ended} after {len(got)} of {steps} steps: {log.read().strip()[-2000:]}")
    limit = None
    if limit_mib:
        kind, most, kills = report.read_text().split()
        limit = {"kind": kind, "peak_mib": int(most), "oom_kills": int(kills)}
    shutil.rmtree(run, ignore_errors=True)
    return {"steps": got[:steps], "peak_rss": rss, "limit": limit}


def _watch(child, metrics, pid_file, steps, trace):
    """Follows a run until it ends or has done so many steps. -> (lines, peak RSS, pid)"""
    got, rss, pid, seen = [], 0, None, 0
    while True:
        over = child.poll() is not None
        if pid is None and pid_file.exists():
            pid = int(pid_file.read_text() or 0) or None
        if pid and trace:
            trace.sample(pid)
        with contextlib.suppress(OSError):
            stat = metrics.stat()
            if stat.st_size != seen:
                seen = stat.st_size
                rss = max(rss, _peak_rss(pid))
                new = [dict(m, cpu_seconds=_cpu_seconds(pid)) for m in _lines(metrics)[len(got):]]
                if trace:
                    trace.arrived(new, stat.st_mtime)
                got += new
        if over or (steps and len(got) >= steps):
            return got, rss, pid
        time.sleep(0.005 if trace else 0.02)


def host_mib(size):
    """"1536MiB" or "2GiB" -> MiB"""
    m = re.fullmatch(r"(\d+)(MiB|GiB|M|G)", size)
    if not m:
        fail(f"expected a size such as 1536MiB or 2GiB, got \"{size}\"")
    return int(m.group(1)) << (10 if m.group(2)[0] == "G" else 0)
