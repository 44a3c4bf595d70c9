#!/usr/bin/env bash
# kernels/cuda on a GPU against the reference on the CPU, with the runner of tests/runner: needs gcc, g++, cmake, nvcc and a GPU, no library.
# usage: tests/run_gpu.sh BUILD JOBS. Exit status: 0 all passed, 77 no GPU or no nvcc and nothing was run, else something failed.
set -u
build=$1 jobs=$2
nvcc=$(command -v nvcc || ls "${CUDA_PATH:-/usr/local/cuda}/bin/nvcc" 2>/dev/null)
if [ -z "$nvcc" ]; then
    echo "test-gpu: not run here: no nvcc (in PATH, \$CUDA_PATH/bin or /usr/local/cuda/bin)"
    exit 77
fi
if ! ls /dev/nvidia[0-9]* >/dev/null 2>&1; then
    echo "test-gpu: not run here: no NVIDIA GPU (/dev/nvidia*)"
    exit 77
fi
cmake -S . -B "$build" -DMOE_KERNELS_ONLY=ON -DMOE_CUDA_ALL=ON -DMOE_TEST_RUNNER=small -DMOE_BENCH=OFF >/dev/null || exit 1
cmake --build "$build" --parallel "$jobs" --target gpu_tests || exit 1
ctest --test-dir "$build" --output-on-failure -R '^gpu_'
