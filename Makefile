# make demo | install | test | test-emulated | fuzz | lint | stubs | docs | bench | sanitize | wheel | try-examples | clean
#
# Needs Python >= 3.10, a C++17 compiler and make. Everything else goes into .venv, in the versions
# of constraints.txt; a second run starts at once. ARGS is passed on:
#   make test ARGS="-k posterior"      make demo ARGS="--seeds 5"      make test PYTHON=python3.12

PYTHON ?= python3
ARGS ?=
# GPU kernels take nvcc minutes: AUTO builds them where it can, ON insists.
CUDA ?= OFF

BIN := .venv/bin
STRICT := CMAKE_COMPILE_WARNING_AS_ERROR=ON
# Most modules of most packages are never imported: bytecode of all of them takes pip longer than installing.
PIP := $(BIN)/python -m pip --disable-pip-version-check install --no-compile -c constraints.txt
PACKAGING := pyproject.toml constraints.txt tests/hosts.txt CMakeLists.txt cmake/choose_cuda.cmake
CPP := $(shell find csrc tests/cpp -type f \( -name '*.h' -o -name '*.cc' -o -name '*.cu' -o -name '*.cuh' \))

.PHONY: demo build-tools install test test-emulated fuzz lint stubs check-stubs check-symbols check-cuda docs bench sanitize wheel try-examples clean
# One step at a time: two pip runs in one environment overwrite each other.
.NOTPARALLEL:

demo: .venv/installed-demo
	$(BIN)/ntkfast demo $(ARGS)

# All that the other targets need; and what building C++ needs of it.
install: .venv/installed-dev
build-tools: .venv/build-tools

test: .venv/installed-test
	$(BIN)/python -m pytest $(ARGS)

# The tests that need a GPU, on a build that emulates one: the real wrappers, launchers and kernels, on the CPU.
EMULATED := $(CURDIR)/build/emulated/package
test-emulated: .venv/installed-test
	$(BIN)/cmake -S . -B build/emulated -G Ninja -DCMAKE_BUILD_TYPE=Release \
	  -DCMAKE_MAKE_PROGRAM="$(abspath $(BIN))/ninja" -DPython_EXECUTABLE="$(abspath $(BIN))/python" \
	  -Dpybind11_DIR="$$($(BIN)/python -m pybind11 --cmakedir)" -DNTKFAST_CUDA=EMULATED -D$(STRICT) \
	  -DNTKFAST_CPU_LIBRARY="$$(ls -t $(CURDIR)/build/cp*/libntkfast_cpu.a 2>/dev/null | head -n 1)"
	$(BIN)/cmake --build build/emulated
	tools/stage_package.sh build/emulated
	PYTHONPATH=$(EMULATED) $(BIN)/python bench/bench_cuda.py --dry-run >build/emulated/dry-run.log 2>&1 & dry=$$!; \
	(cd $(EMULATED) && PYTHONPATH=$(EMULATED) NTKFAST_REQUIRE_GPU=1 $(abspath $(BIN))/python -m pytest \
	  -p no:cacheprovider -c $(CURDIR)/pyproject.toml --rootdir $(CURDIR) $(CURDIR)/tests -m gpu $(ARGS)); \
	code=$$?; wait $$dry || { cat build/emulated/dry-run.log; exit 1; }; exit $$code

# Drawn networks and data against gradients taken one point at a time: make fuzz ARGS="--minutes 60 --jobs 2"
fuzz: .venv/installed-test
	$(BIN)/python tests/fuzz_ntk.py $(ARGS)

lint: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(CPP)

# The typed face of the compiled module, generated from the module itself.
stubs: build/stubs/ntkfast/_core.pyi
	cp $< ntkfast/_core.pyi

check-stubs: build/stubs/ntkfast/_core.pyi
	diff -u ntkfast/_core.pyi $< || { echo "ntkfast/_core.pyi is out of date: run 'make stubs'"; exit 1; }

build/stubs/ntkfast/_core.pyi: .venv/installed-dev
	$(BIN)/pybind11-stubgen ntkfast._core --output-dir build/stubs --exit-code
	$(BIN)/ruff format --quiet $@
	touch $@

check-symbols: .venv/installed-dev
	tools/check_weak_symbols.sh build

# The CUDA half compiles without warnings (no GPU needed; says so where there is no nvcc).
check-cuda:
	tools/compile_cuda.sh build/cuda

# The pages, in build/docs/index.html; a warning is an error, and the examples on the pages and in docstrings run.
docs: .venv/installed-docs
	rm -rf build/docs
	$(BIN)/python -m sphinx --quiet --fail-on-warning --keep-going docs build/docs
	$(BIN)/python -m pytest docs $(ARGS)

bench: .venv/installed-bench
	$(BIN)/python -m pytest bench $(ARGS)

# The C++ tests under the address and undefined-behaviour sanitizers.
sanitize: .venv/build-tools
	$(BIN)/cmake -S . -B build/sanitize -G Ninja -DCMAKE_BUILD_TYPE=RelWithDebInfo \
	  -DCMAKE_MAKE_PROGRAM="$(abspath $(BIN))/ninja" \
	  -DNTKFAST_CPP_TESTS=ON -DNTKFAST_SANITIZE=ON -D$(STRICT)
	$(BIN)/cmake --build build/sanitize
	$(BIN)/ctest --test-dir build/sanitize --output-on-failure -j $(shell getconf _NPROCESSORS_ONLN)

# sdist and wheel as users get them, in dist/, proven with nothing but numpy: make wheel PYTHON=python3.12 CUDA=RELEASE
wheel:
	PYTHON=$(PYTHON) CUDA=$(CUDA) tools/build_wheel.sh

# Every example as a user runs it: from the newest wheel in dist/, in an empty environment with one framework. Downloads
# all of them; LIBACT=path names a checkout of libact, which PyPI does not have.
try-examples:
	PYTHON=$(PYTHON) tools/try_examples.sh "$$(ls -t dist/*.whl | head -n 1)" $(ARGS)

clean:
	rm -rf .venv build

# Installing. A stamp per set of extras; changing the packaging or a C++ source installs again.
$(BIN)/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "ntkfast needs Python >= 3.10; choose one: make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv .venv

.venv/build-tools: constraints.txt | $(BIN)/pip
	$(PIP) "scikit-build-core>=0.11" pybind11 cmake ninja
	touch $@

.venv/installed-%: .venv/build-tools $(PACKAGING) $(CPP)
	$(PIP) --no-build-isolation --editable ".[$*]" \
	  --config-settings=cmake.define.NTKFAST_CUDA=$(CUDA) --config-settings=cmake.define.$(STRICT)
	$(if $(filter dev test,$*),$(PIP) --no-deps --requirement tests/hosts.txt)
	touch $@ $(if $(filter dev,$*),$(addprefix .venv/installed-,demo test docs bench)) # which dev holds
