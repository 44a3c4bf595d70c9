#!/usr/bin/env bash
# A runner that cannot fail proves nothing: every case of the sources must end as its name says. usage: test_runner.sh small|criterion PROGRAM CASES.c...
set -u
kind=$1 program=$2
shift 2
rc=0
wrong() { echo "test_runner.sh: $*"; rc=1; }

cases=$(grep -hoE '^(Test|ParameterizedTest)\(.*(pass|fail)_[a-z_]+' "$@" | sed -E 's/^Test\(//; s/^ParameterizedTest\([^,]*, *//; s/, */\//')
[ "$(wc -w <<<"$cases")" -ge 20 ] || wrong "only these cases were found: $cases"
for name in $cases; do
    said=$("$program" --filter "$name" 2>&1)
    status=$?
    case $name in
        */pass_*) [ "$status" -eq 0 ] || wrong "$name: exit status $status, expected 0: $said" ;;
        *) [ "$status" -ne 0 ] || wrong "$name: exit status 0, expected a failure: $said" ;;
    esac
done
said=$("$program" --filter fixture/fail_and_fini_still_runs 2>&1)
grep -q 'fini after 41' <<<"$said" || wrong "no fini after a failure: $said"
[ "$kind" = small ] || exit $rc

# What only the small runner says
said=$("$program" --filter 'process/fail_timeout' 2>&1)
grep -q 'stopped after 0.3 seconds' <<<"$said" || wrong "no word about the time limit: $said"
said=$("$program" --filter 'process/fail_crash' 2>&1)
grep -q 'CRASH.*Killed' <<<"$said" || wrong "no word about the signal: $said"
said=$("$program" --filter 'plain/fail_assert' 2>&1)
grep -q 'cases.c:[0-9]*: failed: made == 1' <<<"$said" && grep -q 'made is 0' <<<"$said" || wrong "no file, expression and message: $said"
said=$("$program" --filter 'process/pass_skip' 2>&1)
grep -q 'SKIP.*for a reason: 0' <<<"$said" || wrong "no reason of skipping: $said"
said=$("$program" 2>&1) && wrong "exit status 0 for all cases together: $said"
grep -qE 'Passing: 12 \| Failing: 1[0-9] \| Crashing: 1 \| Skipped: 2' <<<"$said" || wrong "other sums than expected: $said"
"$program" --filter 'none/*' >/dev/null 2>&1 && wrong "exit status 0 without a test"
"$program" --jobs 2 >/dev/null 2>&1 && wrong "exit status 0 for an option that is not there"
exit $rc
