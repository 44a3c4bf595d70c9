# Thin: what to type. The build itself is CMake (CMakeLists.txt, CMakePresets.json).
BUILD ?= build
JOBS ?= $(shell nproc)
GENERATOR ?= $(if $(shell command -v ninja),-G Ninja,)

BUILD_PACKAGES := gcc g++ cmake ninja-build make pkg-config liburing-dev libjemalloc-dev libyaml-dev libjansson-dev libpcre2-dev libzstd-dev \
                  libxxhash-dev libcriterion-dev
DEMO_PACKAGES := bible-kjv bible-kjv-text dict-gcide anarchism python3 python3-matplotlib python3-pip

.PHONY: all deps build programs demo demo-deps test test-long test-gpu fuzz bench clean format help

all: build

help: ## this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

deps: ## install what the build needs from Debian (root or sudo)
	@bench/demo/install.sh $(BUILD_PACKAGES)

demo-deps:
	@bench/demo/install.sh $(DEMO_PACKAGES)

$(BUILD)/CMakeCache.txt: | deps
	@cmake -S . -B $(BUILD) $(GENERATOR) >/dev/null

build: deps $(BUILD)/CMakeCache.txt ## build everything into build/
	@cmake --build $(BUILD) --parallel $(JOBS)

programs: deps $(BUILD)/CMakeCache.txt ## build the programs only
	@cmake --build $(BUILD) --parallel $(JOBS) --target moe-train moe-serve moe-model

demo: programs demo-deps ## train an MoE four times larger than its memory on real text; then real weights, upcycled (under 15 minutes)
	@bench/demo/demo.sh $(BUILD)
	@bench/demo/real.sh $(BUILD)

test: build ## every quick test (under 7 minutes with the build)
	@tests/run.sh $(BUILD) $(JOBS)

test-long: build ## the long forms: kill and resume at 100 instants, exhaustive crash points, sanitizers
	@MOE_TEST_LONG=1 tests/run.sh $(BUILD) $(JOBS)
	@tests/run_sanitizers.sh $(JOBS)

test-gpu: ## kernels/cuda on a GPU against the CPU, in build-gpu/ (status 77: no GPU here, nothing was run)
	@tests/run_gpu.sh build-gpu $(JOBS)

fuzz: deps ## libFuzzer targets, MINUTES each (default 5; needs clang)
	@tests/fuzz/run.sh $(if $(MINUTES),$(MINUTES),5)

bench: build ## the benchmarks of bench/README.md
	@bench/run.sh $(BUILD)

format: ## clang-format over the sources
	@git ls-files '*.c' '*.h' | xargs clang-format -i

clean: ## remove the build folders
	rm -rf $(BUILD) build-debug build-tsan build-fuzz build-gpu
