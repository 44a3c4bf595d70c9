#!/usr/bin/env bash
# Installs the Debian packages named on the command line that are not there yet, and says so. Root, or sudo.
set -eu
missing=()
for p in "$@"; do
    dpkg-query -W -f '${Status}' "$p" 2>/dev/null | grep -q 'install ok installed' || missing+=("$p")
done
[ ${#missing[@]} -gt 0 ] || exit 0
if ! command -v apt-get >/dev/null; then
    echo "Not a Debian system: please install the equivalents of: ${missing[*]}" >&2
    exit 1
fi
echo "Installing from Debian: ${missing[*]}" >&2
sudo=()
if [ "$(id -u)" -ne 0 ]; then
    command -v sudo >/dev/null || { echo "Neither root nor sudo: please install: ${missing[*]}" >&2; exit 1; }
    sudo=(sudo)
fi
export DEBIAN_FRONTEND=noninteractive
log=$(mktemp)
trap 'rm -f "$log"' EXIT
apt() { ${sudo[@]+"${sudo[@]}"} apt-get "$@" >>"$log" 2>&1; }
apt update -qq || { cat "$log" >&2; exit 1; }
# once more when it fails: a mirror that drops a connection leaves packages half installed
for try in 1 2; do
    apt install -f -y -qq --no-install-recommends "${missing[@]}" && exit 0
done
tail -n 40 "$log" >&2
exit 1
