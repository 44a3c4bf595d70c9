#!/usr/bin/env bash
# All tests under ASan + UBSan, then those with threads under TSan. usage: tests/run_sanitizers.sh JOBS
set -eu
jobs=$1
cmake --preset debug >/dev/null
cmake --build build-debug --parallel "$jobs"
ASAN_OPTIONS=detect_leaks=1 ctest --test-dir build-debug --output-on-failure --parallel "$jobs"
cmake --preset tsan >/dev/null
cmake --build build-tsan --parallel "$jobs"
ctest --test-dir build-tsan --output-on-failure --parallel "$jobs" -R 'base|io|store|tier|stash|pool|train|resume'
