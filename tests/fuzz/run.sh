#!/usr/bin/env bash
# Builds the libFuzzer targets into build-fuzz/ and runs each. usage: tests/fuzz/run.sh short | MINUTES (per target)
# Without clang the short form is skipped. A target that finds something leaves its input in build-fuzz/ and the exit status is not 0.
set -u
cd "$(dirname "$0")/../.."
case ${1:-} in
    short) seconds=2 same=-seed=1 ;; # the same inputs every time: what is new is found by the long form
    '' | *[!0-9]*) echo "usage: $0 short | MINUTES" >&2; exit 64 ;;
    *) seconds=$(($1 * 60)) ;;
esac
probe=$(mktemp)
if ! echo 'int LLVMFuzzerTestOneInput(const unsigned char *d, unsigned long n) { (void)d; (void)n; return 0; }' |
    clang -fsanitize=fuzzer,address,undefined -x c - -o "$probe" 2>/dev/null; then
    rm -f "$probe"
    echo "fuzz: skipped, needs clang with its runtime (Debian: clang libclang-rt-14-dev)"
    [ "$1" = short ] && exit 0 || exit 69
fi
rm -f "$probe"
cmake --preset fuzz >/dev/null || exit 1
mapfile -t targets < <(sed -n 's/^moe_fuzz(\([a-z_]*\).*/fuzz_\1/p' tests/fuzz/CMakeLists.txt)
cmake --build build-fuzz --parallel "${JOBS:-$(nproc)}" --target "${targets[@]}" >/dev/null || exit 1
rc=0
cd build-fuzz
for t in "${targets[@]}"; do
    if "tests/fuzz/$t" -max_total_time="$seconds" ${same:+"$same"} -rss_limit_mb=1024 -artifact_prefix="$t-" "tests/fuzz/corpus/${t#fuzz_}" >"$t.log" 2>&1; then
        echo "$t: $(sed -n 's/^Done //p' "$t.log")"
    else
        echo "$t: FAILED, see build-fuzz/$t.log" >&2
        tail -n 20 "$t.log" >&2
        rc=1
    fi
done
exit $rc
