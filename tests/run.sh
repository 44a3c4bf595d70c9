#!/usr/bin/env bash
# The short form of the fuzzers where clang is there, then all tests of a build. usage: tests/run.sh BUILD JOBS
set -u
build=$1 jobs=$2
rc=0
tests/fuzz/run.sh short || rc=$?
ctest --test-dir "$build" --output-on-failure --parallel "$jobs" || rc=$?
exit $rc
