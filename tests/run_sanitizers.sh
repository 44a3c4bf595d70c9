#!/usr/bin/env bash
# Tests under ASan + UBSan (all of them), then under TSan (those with threads), both with the runner of tests/runner.
# usage: tests/run_sanitizers.sh JOBS [address|thread]
set -eu
jobs=$1 half=${2:-both}
rc=0

# The longest programs first (COST in tests/CMakeLists.txt), so that no processor is idle at the end. All of a half runs even if something fails.
run_half() { # PRESET FOLDER WORDS CTEST-OPTION...
    local preset=$1 folder=$2 words=$3 start=$SECONDS
    shift 3
    cmake --preset "$preset" >/dev/null
    cmake --build "$folder" --parallel "$jobs"
    local built=$SECONDS
    ctest --test-dir "$folder" --output-on-failure --parallel "$jobs" "$@" || rc=$?
    echo "$words: build $((built - start)) s, tests $((SECONDS - built)) s"
}

case $half in address | thread | both) ;; *) echo "tests/run_sanitizers.sh: expected address or thread, found '$half'" >&2; exit 64 ;; esac
[ "$half" = thread ] || run_half debug build-debug "address and undefined-behaviour sanitizers"
[ "$half" = address ] || run_half tsan build-tsan "thread sanitizer" --label-exclude single
exit $rc
