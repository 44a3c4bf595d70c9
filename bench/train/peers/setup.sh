#!/usr/bin/env bash
# Makes the Python environment of the peers in DIR, with an env.sh to source, and checks it. usage: setup.sh DIR [--slim]
# Python 3.11+ with venv. --slim: the GPU libraries that torch links come from a CUDA 13 toolkit with cuDNN 9 (CUDA_HOME,
# /usr/local/cuda) instead of being installed too: 2.4 GB, and pip says what it misses. Nothing here uses a GPU.
set -eu
[ $# -ge 1 ] || { echo "usage: setup.sh DIR [--slim]" >&2; exit 64; }
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$1"
dir=$(cd "$1" && pwd)
cuda=${CUDA_HOME:-/usr/local/cuda}
python3 -m venv "$dir/venv"
pip=("$dir/venv/bin/pip" -q --disable-pip-version-check install)
libraries=
if [ "${2:-}" = --slim ]; then
    "${pip[@]}" --no-deps "$(grep '^torch==' "$here/requirements.txt")" nvidia-nccl-cu13==2.30.7 'nvidia-cufile==1.17.*' nvidia-cusparselt-cu13==0.8.1 nvidia-nvshmem-cu13==3.7.2
    "${pip[@]}" filelock typing-extensions sympy networkx jinja2 fsspec 'setuptools>=77.0.3'
    grep -v '^torch' "$here/requirements.txt" | "${pip[@]}" -r /dev/stdin
    for lib in "$dir"/venv/lib/python3*/site-packages/nvidia/*/lib; do libraries+=$lib:; done
    libraries+=$cuda/lib64:$cuda/extras/CUPTI/lib64
else
    "${pip[@]}" -r "$here/requirements.txt"
fi
{
    [ -z "$libraries" ] || echo "export LD_LIBRARY_PATH=$libraries\${LD_LIBRARY_PATH:+:\$LD_LIBRARY_PATH}"
    echo "export PATH=$dir/venv/bin:\$PATH HF_HUB_OFFLINE=1"
} >"$dir/env.sh"
. "$dir/env.sh"
python "$here/verify.py"
