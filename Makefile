# make demo   set up, then train a teacher, a student-friendly teacher and their students on handwritten digits
# make test   set up, then run the tests
# make check  the tests, and ruff, codespell, mypy, clang-format, the ABI audit, the user guide as a site
# make docs   the user guide as a site, in build/site
# make wheel  a wheel for all GPUs in dist/, installed and tried in an environment of its own
# make bench  measure kernels and whole training steps against plain PyTorch, and how cost grows,
#             at AVX2 and at AVX-512 if the machine has both: planned for less than 20 minutes on two idle cores
#
# Everything lives in .venv; a second call reuses what stands.

PYTHON  ?= python3
WORKERS ?= 2
VENV    := .venv
BIN     := $(VENV)/bin
PY      := $(BIN)/python
PIP     := $(PY) -m pip --disable-pip-version-check
# Python compiles a module when it is first imported: of torch, most never are.
INSTALL := $(PIP) install --quiet --no-compile -c constraints.txt
SOURCES := $(shell find csrc -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')
CLANGED := $(SOURCES) $(shell find tests/simt -name '*.cpp' -o -name '*.h' -o -name '*.cu')

export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: demo test check lint docs wheel bench setup clean

# Two trainings at a time, unless there is a GPU, which runs them one by one.
DEVICES := $(shell nvidia-smi >/dev/null 2>&1 || echo --devices cpu,cpu)
demo: $(VENV)/built
	$(PY) -m sftn_fast.train --config few_images $(DEVICES)

# Exported for what it depends on too: a fresh clone builds all levels at once.
test: export SFTN_CPU_LEVELS := all
test: setup $(VENV)/all-levels
	SFTN_REQUIRE_KERNELS=1 $(PY) -m pytest -n $(WORKERS) --dist worksteal

check: lint docs test

docs: setup
	$(PY) -m mkdocs build --strict --quiet

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(CLANGED)
	@if [ -x $(BIN)/torch-abi-audit ]; then $(BIN)/torch-abi-audit --check torch sftn_fast/_C.so; \
	else echo "torch-abi-audit needs Python 3.11: not run"; fi

wheel: setup
	rm -rf build/wheel && mkdir -p build/wheel dist
	SFTN_CUDA=1 $(PIP) wheel --quiet --no-deps --no-build-isolation --wheel-dir build/wheel .
	$(PYTHON) -m venv build/wheel/venv
	build/wheel/venv/bin/pip install --quiet --disable-pip-version-check -c constraints.txt torch torchvision build/wheel/*.whl
	cd build/wheel && venv/bin/python $(CURDIR)/tests/smoke.py
	mv build/wheel/*.whl dist/

bench: export SFTN_CPU_LEVELS := all
bench: setup $(VENV)/all-levels
	$(PY) -m bench --levels
	$(PY) -m bench.readme

setup: $(VENV)/developed

$(VENV)/created:
	@$(PYTHON) -c 'import sys; sys.exit("sftn_fast needs Python 3.10 or newer, $(PYTHON) is " + sys.version.split()[0] if sys.version_info < (3, 10) else 0)'
	@echo "== making a virtual environment in $(VENV)"
	@$(PYTHON) -m venv $(VENV) || { echo "Python's venv module is missing; on Debian: apt-get install python3-venv" >&2; exit 1; }
	@touch $@

$(VENV)/installed: $(VENV)/created constraints.txt
	@echo "== installing torch as pinned in constraints.txt (with CUDA, about 5 GB on the disk: some minutes)"
	@$(INSTALL) torch torchvision setuptools ninja
	@touch $@

$(VENV)/built: $(VENV)/installed pyproject.toml setup.py $(SOURCES)
	@echo "== building the C++ library, and CUDA kernels for this machine's GPU if it has one, while pip installs what it needs"
	@echo "   $(words $(filter csrc/cpu/%.cpp,$(SOURCES))) C++ files to compile: about a minute on two idle cores"
	@# pip builds last, and so finds the objects. What goes wrong with the first build, it repeats and prints.
	@$(PY) setup.py --quiet build_ext --inplace >$(VENV)/build.log 2>&1 & \
	$(INSTALL) --no-build-isolation -e '.[vision]'; status=$$?; wait; exit $$status
	@$(PY) -m sftn_fast.info
	@touch $@

$(VENV)/developed: $(VENV)/built
	@echo "== installing the packages for tests, checks and benchmarks"
	@$(INSTALL) --no-build-isolation -e '.[vision,timm,tensorboard,dali,dev]'
	@touch $@

$(VENV)/all-levels: $(VENV)/developed
	@echo "== building the C++ library for all levels of vector instructions: two minutes on two cores"
	@$(PY) setup.py --quiet build_ext --inplace >$(VENV)/build.log 2>&1 || { cat $(VENV)/build.log; exit 1; }
	@touch $@

clean:
	rm -rf $(VENV) build sftn_fast/*.so *.egg-info
