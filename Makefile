# `make demo` and `make test` do all their own set-up: Python 3.11, make and the package registry
# are enough. torch is pinned in constraints.txt, so that pip takes the CPU build where one is offered.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check

.PHONY: demo test lint types unit bench bench-gpu gpu-wheels train-embedded peers clean

# The stamps say what is installed: the program, the test tools, the reference implementation.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) -c constraints.txt torch
	$(PIP) -c constraints.txt -e .
	@touch $@

$(VENV)/.tests: $(VENV)/.installed
	$(PIP) -c constraints.txt -e .[test]
	$(PIP) -c constraints.txt --no-deps audiocraft
	@touch $@

$(VENV)/.train: $(VENV)/.installed
	$(PIP) -c constraints.txt -e .[train]
	@touch $@

demo: $(VENV)/.installed
	$(BIN)/specgen generate "a lively jig in D major on the violin" --seed 7 --duration 10 \
		--out demo/jig.wav --overwrite

test: lint types unit

lint: $(VENV)/.tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.tests
	$(BIN)/mypy

unit: $(VENV)/.tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile

# The table of docs/speed.md, on this machine.
bench: $(VENV)/.tests
	$(BIN)/specgen bench --output-file docs/benchmarks/cpu.json

# On a CUDA machine with torch 2.11 or newer and this checkout; needs no network. Steps that are done
# are passed over, so it can be run again; benchmarks/gpu.py says what they are.
#   make bench-gpu GPU_OUT=folder GPU_OPTIONS="--steps synthetic,peers"
GPU_OUT ?= docs/benchmarks
GPU_OPTIONS ?=
bench-gpu:
	PYTHONPATH=. $(PYTHON) benchmarks/gpu.py --out $(GPU_OUT) $(GPU_OPTIONS)

# What such a machine may lack, fetched where there is a network; travels in build/wheels.
gpu-wheels: $(VENV)/.installed
	$(BIN)/pip download --quiet --no-deps --only-binary=:all: --python-version 3.12 \
		--implementation cp --platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 \
		--platform manylinux2014_x86_64 -c constraints.txt -d build/wheels \
		omegaconf soundfile soxr cffi pycparser
	$(BIN)/pip wheel --quiet --no-deps -c constraints.txt -w build/wheels audiocraft

# Data, codec, tokens, language models: hours. Debian: apt-get install abcmidi fluidsynth fluid-soundfont-gm
train-embedded: $(VENV)/.train
	$(BIN)/python -m specgen.training.embedded

# audiocraft, without what it pins (docs/dependencies.md).
peers: $(VENV)/.tests

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
