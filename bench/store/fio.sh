#!/usr/bin/env bash
# The store against fio: same request size, same depth, same share of writes, same folder, in turn. usage: bench/store/fio.sh BUILD FOLDER [ROUNDS]
# Prints each round and, per mix, the median of the ratios; the disk has bursts and other users, so only the ratio means something.
# fio gets what makes it fastest: io_uring, O_DIRECT, registered buffers and files. Leaves nothing behind.
set -eu
[ $# -ge 2 ] || { sed -n '2p' "$0" >&2; exit 64; }
bench=$1/bench/store/bench_store folder=$2 rounds=${3:-5}
depth=${DEPTH:-16} part=${PART:-6291456} sections=${SECTIONS:-48} seconds=${SECONDS_EACH:-4}
request=1M # IO_CHUNK
command -v fio >/dev/null || { echo "fio.sh: fio is not installed" >&2; exit 69; }
mkdir -p "$folder"
trap 'rm -rf "$folder/store" "$folder/fio.dat" "$folder/samples"' EXIT
: >"$folder/samples"

run_fio() { # share of reads in percent
    fio --name=mix --filename="$folder/fio.dat" --size=$((part * sections * 8)) --bs=$request --rw=randrw --rwmixread="$1" --direct=1 \
        --ioengine=io_uring --fixedbufs --registerfiles --iodepth="$depth" --runtime="$seconds" --ramp_time=0.3 --time_based \
        --output-format=json | python3 -c '
import json, sys
j = json.load(sys.stdin)["jobs"][0]
rate = (j["read"]["bw_bytes"] + j["write"]["bw_bytes"]) / 1e9
print("%.4f %.5f" % (rate, (j["usr_cpu"] + j["sys_cpu"]) / 100 / rate))'
}
run_store() { # mix
    "$bench" --dir "$folder/store" --part "$part" --sections "$sections" --depth "$depth" --seconds "$seconds" --mix "$1" 2>/dev/null | python3 -c '
import json, sys
j = json.loads(sys.stdin.readline())
print(j["gb_per_s"], j["cpu_s_per_gb"], j["checksum_s_per_gb"])'
}

# Written once, so that fio too finds blocks that are not new.
fio --name=lay --filename="$folder/fio.dat" --size=$((part * sections * 8)) --bs=4M --rw=write --direct=1 --ioengine=io_uring --iodepth=8 >/dev/null
for round in $(seq "$rounds"); do
    for mix in forward:57 backward:50 read:100; do
        if [ $((round % 2)) = 0 ]; then
            f=$(run_fio "${mix#*:}") s=$(run_store "${mix%:*}")
        else
            s=$(run_store "${mix%:*}") f=$(run_fio "${mix#*:}")
        fi
        echo "${mix%:*} $s $f" | tee -a "$folder/samples" | awk '{ printf "%-8s store %.2f GB/s (CPU %.4f s/GB, checksums %.4f)   fio %.2f GB/s (CPU %.4f s/GB)   ratio %.3f\n", $1, $2, $3, $4, $5, $6, $2 / $5 }'
    done
done
echo
for mix in forward backward read; do
    awk -v m=$mix '$1 == m { print $2 / $5 }' "$folder/samples" | sort -n | awk -v m=$mix '{ x[NR] = $1 } END {
        printf "%-8s store / fio: median %.3f of %d rounds (least %.3f, most %.3f)\n", m, NR % 2 ? x[(NR + 1) / 2] : (x[NR / 2] + x[NR / 2 + 1]) / 2, NR, x[1], x[NR] }'
done
