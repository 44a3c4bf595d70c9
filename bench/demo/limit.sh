#!/usr/bin/env bash
# Runs a command in at most SIZE_MIB of memory: a cgroup (v2, else v1), else RLIMIT_DATA; says which. usage: limit.sh SIZE_MIB COMMAND...
# LIMIT_REPORT=FILE: afterwards FILE holds "kind peak_MiB oom_kills".
set -u
mib=$1
shift
name=paternoster-$$
v2=$(awk '$3 == "cgroup2" {print $2; exit}' /proc/self/mounts)
v1=$(awk '$3 == "cgroup" && $4 ~ /(^|,)memory(,|$)/ {print $2; exit}' /proc/self/mounts)
report() { [ -z "${LIMIT_REPORT:-}" ] || echo "$@" >"$LIMIT_REPORT"; }

if [ -n "$v2" ] && grep -qw memory "$v2/cgroup.controllers" 2>/dev/null && echo +memory >"$v2/cgroup.subtree_control" 2>/dev/null &&
    mkdir "$v2/$name" 2>/dev/null; then
    g=$v2/$name
    echo $((mib << 20)) >"$g/memory.max"
    echo 0 >"$g/memory.swap.max" 2>/dev/null
    echo "memory limit: $mib MiB, cgroup v2, no swap" >&2
    (echo "$BASHPID" >"$g/cgroup.procs" && exec "$@")
    rc=$?
    report v2 $(($(cat "$g/memory.peak" 2>/dev/null || echo 0) >> 20)) "$(awk '$1 == "oom_kill" {print $2}' "$g/memory.events")"
    rmdir "$g"
elif [ -n "$v1" ] && mkdir "$v1/$name" 2>/dev/null; then
    g=$v1/$name
    echo $((mib << 20)) >"$g/memory.limit_in_bytes"
    echo $((mib << 20)) >"$g/memory.memsw.limit_in_bytes" 2>/dev/null
    echo "memory limit: $mib MiB, cgroup v1, no swap" >&2
    (echo "$BASHPID" >"$g/cgroup.procs" && exec "$@")
    rc=$?
    report v1 $(($(cat "$g/memory.max_usage_in_bytes") >> 20)) "$(awk '$1 == "oom_kill" {print $2}' "$g/memory.oom_control")"
    for _ in 1 2 3 4 5; do rmdir "$g" 2>/dev/null && break; sleep 0.2; done
else
    echo "memory limit: $mib MiB, RLIMIT_DATA (no cgroup may be made here)" >&2
    (ulimit -d $((mib << 10)) && exec "$@")
    rc=$?
    report rlimit 0 0
fi
exit $rc
