#!/usr/bin/env bash
# Trains an MoE whose expert states are more than four times the memory it may use, on real text, and shows what came of it.
# usage: demo.sh BUILD   (results under demo/)
set -eu
build=$1
here=$(cd "$(dirname "$0")" && pwd)
train=$(cd "$build" && pwd)/bin/moe-train
out=demo
limit=256        # MiB
seconds=330      # of training
python=python3   # another than Debian's may come first on PATH, without what Debian's packages bring
"$python" -c 'import matplotlib' 2>/dev/null || python=/usr/bin/python3
say() { printf '\n\033[1m%s\033[0m\n' "$*" >&2; }
[ -z "${NO_COLOR:-}" ] && [ -t 2 ] || say() { printf '\n%s\n' "$*" >&2; }
limited() { "$here/limit.sh" $limit "$@"; }

say "1. Text from Debian packages"
rm -rf $out
mkdir -p $out
cp "$here/demo.yaml" $out/
python3 "$here/text.py" $out/text
"$train" prepare --tokenizer bytes --out $out/data $out/text/bible.txt $out/text/gcide.txt $out/text/anarchism.txt
entropy=$(python3 -c "import json; d = json.load(open('$out/data/data.json')); print(d['val']['unigram_entropy_nats'])")

say "2. Will it fit? (moe-train check)"
"$train" check $out/demo.yaml --run-dir $out/run

say "3. The first 8 steps are measured, then the schedule is fitted to $seconds seconds"
limited "$train" run $out/demo.yaml --run-dir $out/run
steps=$(python3 - <<END
import json, statistics
rows = [json.loads(l) for l in open('$out/run/metrics.jsonl')]
step = statistics.median(r['tokens'] / r['step'] / r['tokens_per_second'] for r in rows[2:])
print(8 + max(16, int($seconds / step)))
END
)
say "4. Training $steps steps in $limit MiB"
LIMIT_REPORT=$out/limit.txt limited "$train" run $out/demo.yaml --run-dir $out/run --set train.steps="$steps"

say "5. Held-out loss and a sample"
limited "$train" eval $out/run | tee $out/eval.json
limited "$train" sample $out/run --prompt "In the beginning " --tokens 160 --seed 7 --temperature 0.7 | tee $out/sample.txt

say "6. Plots"
"$python" "$here/../plot.py" $out/run

python3 - <<END
import json
val = json.load(open('$out/eval.json'))['val_loss']
kind, peak, kills = open('$out/limit.txt').read().split()
states = 12 * 3 * 256 * 512 * 40 * 6
how = {'v1': 'a cgroup (v1)', 'v2': 'a cgroup (v2)', 'rlimit': 'RLIMIT_DATA'}[kind]
peak = f', at most {peak} MiB used' if int(peak) else ''
ratio = states / ($limit << 20)
print(f"\nShown: a Mixture-of-Experts model with {states / 2**30:.2f} GiB of expert weights and moments was trained for $steps steps inside $limit MiB "
      f"({ratio:.1f} times less; {how}{peak}, {kills} OOM kills); held-out loss {val:.3f} nats per byte against a unigram entropy of {float($entropy):.3f}.")
assert val < float($entropy) - 0.3, 'the model did not learn'
END
