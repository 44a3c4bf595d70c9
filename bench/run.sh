#!/usr/bin/env bash
# Measures every row of README.md's table, one after the other, and writes bench/results/*.json and table.md.
# usage: run.sh BUILD [--peers DIR] [--llama DIR] [--scratch DIR] [--quick] [NAME...]     (names: see README.md; default: all)
# --peers DIR: made by train/peers/setup.sh; without it PyTorch is not measured. --llama DIR: by serve/peers/setup.sh, the same for moe-serve
# beside llama.cpp. --scratch DIR: the drive to use (default BUILD/bench-scratch).
# --quick: few and short samples into BUILD/bench-quick, to see that everything runs here; the figures mean little.
# A benchmark that fails does not stop the others; a figure that is not reached is no failure.
# shellcheck disable=SC2317 # the benchmarks are called by name
set -u
usage() { sed -n '3,7s/^# //p' "$0" >&2; exit 64; }
[ $# -ge 1 ] || usage
build=$1
shift
peers='' llama='' scratch='' quick='' names=()
while [ $# -gt 0 ]; do
    case $1 in
    --peers) [ $# -ge 2 ] || usage; peers=$(realpath "$2"); shift ;;
    --llama) [ $# -ge 2 ] || usage; llama=$(realpath "$2"); shift ;;
    --scratch) [ $# -ge 2 ] || usage; scratch=$2; shift ;;
    --quick) quick=1 ;;
    -*) usage ;;
    *) names+=("$1") ;;
    esac
    shift
done
if [ ${#names[@]} -eq 0 ]; then
    names=(kernels store peers limit-small limit-big checkpoint size)
    if [ -n "$llama" ]; then names+=(serve); fi
    if [ -n "$peers" ]; then names+=(learning); else echo "run.sh: without --peers PyTorch is not measured, and learning is left out" >&2; fi
fi
here=$(cd "$(dirname "$0")" && pwd)
build=$(realpath "$build")
scratch=${scratch:-$build/bench-scratch}
results=$here/results
[ -z "$quick" ] || results=$build/bench-quick
export BENCH_RESULTS=$results # read by measure.py
mkdir -p "$scratch" "$results" || exit 73
scratch=$(realpath "$scratch")
[ -x "$build/bin/moe-train" ] || { echo "run.sh: $build/bin/moe-train is not there; build first: make" >&2; exit 66; }
common=("$build" --scratch "$scratch")
with=()
[ -z "$peers" ] || with=(--peers "$peers")

# The value for a real measurement, or the second one for --quick.
pick() { if [ -n "$quick" ]; then shift; fi; echo "$1"; }

kernels() {
    local out=$scratch/kernels.jsonl
    # shellcheck disable=SC2046
    "$build/bench/kernels/bench_kernels" $(pick "" "--reps 3 --only tiny") --json "$out" &&
        python3 "$here/results.py" kernels "$out" --command "bench_kernels --json FILE"
}
store() {
    local out=$scratch/store.txt
    "$here/store/fio.sh" "$build" "$scratch" "$(pick 5 1)" | tee "$out" &&
        python3 "$here/results.py" store "$out" --command "bench/store/fio.sh BUILD FOLDER"
}
# shellcheck disable=SC2046
peers() { "$here/train/peers.py" "${common[@]}" "${with[@]}" $(pick "" "--config tiny --rounds 1 --steps 2"); }
# shellcheck disable=SC2046
limit_small() { "$here/train/limit.py" "${common[@]}" "${with[@]}" $(pick "" "--rounds 1 --steps 1 --warmup 2 --update deferred --fio-seconds 2"); }
# shellcheck disable=SC2046
limit_big() {
    "$here/train/limit.py" "${common[@]}" --config big --host-memory 2GiB \
        $(pick "--rounds 2" "--rounds 1 --steps 1 --warmup 1 --update deferred --fio-seconds 2")
}
# shellcheck disable=SC2046
checkpoint() { "$here/train/checkpoint.py" "${common[@]}" $(pick "" "--config tiny:384MiB --rounds 1"); }
# shellcheck disable=SC2046
size() { "$here/train/size.py" "${common[@]}" $(pick "" "--experts 16,64 --hidden 256 --width 256 --rounds 1 --steps 1"); }
# shellcheck disable=SC2046
serve() {
    [ -n "$llama" ] || { echo "run.sh: serve needs --llama DIR (llama.cpp)" >&2; return 69; }
    "$here/serve/peers.py" "${common[@]}" --llama "$llama" $(pick "" "--rounds 1 --models smollm2")
}
learning() {
    local out=$scratch/learning
    if [ -z "$peers" ]; then
        echo "run.sh: learning needs --peers DIR (PyTorch)" >&2
        return 69
    fi
    rm -rf "$out"
    mkdir -p "$out" || return
    "$here/demo/install.sh" bible-kjv-text dict-gcide anarchism python3 || return
    python3 "$here/demo/text.py" "$out/text" || return
    "$build/bin/moe-train" prepare --tokenizer bytes --out "$out/data" --quiet "$out"/text/{bible,gcide,anarchism}.txt || return
    # shellcheck disable=SC1091
    (. "$peers/env.sh" && python "$here/loss_curve.py" "$out/data" --steps "$(pick 300 10)" --moe-train "$build/bin/moe-train" --out "$out/curve")
    [ -f "$out/curve/loss_curve.json" ] || return
    cp "$out"/curve/loss_curve.png "$results/" 2>/dev/null
    python3 "$here/results.py" learning "$out/curve/loss_curve.json" --command "bench/loss_curve.py DATA"
    local rc=$?
    rm -rf "$out"
    return $rc
}

main() {
    local failed=() name
    for name in "${names[@]}"; do
        case $name in
        kernels | store | peers | limit-small | limit-big | checkpoint | size | learning) ;;
        *) echo "run.sh: no benchmark is called $name" >&2; exit 64 ;;
        esac
    done
    for name in "${names[@]}"; do
        printf '\n== %s\n' "$name" >&2
        "${name//-/_}" || failed+=("$name")
    done
    printf '\n== results\n' >&2
    python3 "$here/results.py" table
    rm -f "$scratch/kernels.jsonl" "$scratch/store.txt"
    rmdir "$scratch" 2>/dev/null
    if [ ${#failed[@]} -gt 0 ]; then
        echo "run.sh: without a result: ${failed[*]}" >&2
    fi
    exit $((${#failed[@]} > 0))
}
main # read whole before anything runs: the file may be edited meanwhile
