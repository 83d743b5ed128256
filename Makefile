SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.ONESHELL:
.DELETE_ON_ERROR:
.PHONY: help setup setup-test grid submit test test-all faults bench bench-full bench-stream bench-backbone bench-race bench-scale bench-limit bench-gpu picture lint audit constraints clean

# With it set, the libraries' bytecode would not be kept, and importing TensorFlow takes 11 s instead of 4.5 s.
unexport PYTHONDONTWRITEBYTECODE

SPEC ?=
ADDRESS ?=
ARGS ?=
BACKBONE ?= orchestrator/data/sample/backbones/fashion.keras
DATA ?= build/classes
VENV := .venv
PYTHON := $(VENV)/bin/python

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

setup: $(VENV)/.ready ## Make .venv with the pinned dependencies

setup-test: $(VENV)/.ready-test ## The same, and what the tests need

grid: setup ## Train a grid: make grid SPEC=jobs/some.yaml ARGS="--plan"
	@$(PYTHON) -m orchestrator.grid $(SPEC) $(ARGS)
	# the run ends with commands to type next, which take the python of this environment
	if [[ ! "$$(dirname "$$(command -v python)")" -ef $(VENV)/bin ]]; then
		echo "before you type these: source $(VENV)/bin/activate" >&2
	fi

submit: setup ## Train it on a cluster: make submit SPEC=jobs/some.yaml ADDRESS=http://127.0.0.1:8265 ARGS="--output s3://bucket/runs"
	$(PYTHON) -m orchestrator.submit $(SPEC) $(if $(ADDRESS),--address $(ADDRESS)) $(ARGS)

test: lint ## Lint, then the tests that one waits for, in minutes: make test ARGS="tests/test_spec.py -k axes"
	$(PYTHON) -m pytest $(ARGS)

test-all: lint ## All tests: also clusters, faults, a browser, and what infra/ deploys; most of an hour
	$(PYTHON) -m pytest tests $(ARGS)

faults: lint ## Break grids on purpose, and write what came of it into docs/reliability.md (FAULTS_SEED=N repeats a run)
	$(PYTHON) -m pytest tests/faults --write-table $(ARGS)

bench: $(VENV)/.ready-bench build/jpegs ## Against the notebook, Ray Tune and KerasTuner on one grid; half an hour
	$(PYTHON) tests/benchmarks/bench_trial.py build/jpegs
	$(PYTHON) tests/benchmarks/bench_grid.py build/jpegs $(ARGS)

bench-full: $(VENV)/.ready-bench build/jpegs ## The same with 5, 10 and 20 epochs; hours
	$(PYTHON) tests/benchmarks/bench_grid.py build/jpegs --full $(ARGS)

bench-stream: $(VENV)/.ready-bench build/jpegs ## Streaming from an object store against its parts; minutes
	$(PYTHON) tests/benchmarks/bench_pipeline.py
	$(PYTHON) tests/benchmarks/bench_stream.py build/jpegs $(ARGS)

bench-backbone: $(VENV)/.ready-bench $(DATA) ## Cached features against the same network in the model: make bench-backbone BACKBONE=FILE DATA=FOLDER
	$(PYTHON) tests/benchmarks/bench_backbone.py "$(BACKBONE)" "$(DATA)" $(ARGS)

bench-race: $(VENV)/.ready-test ## Races and verdicts replayed over recorded grids, beside what others would do; minutes
	$(PYTHON) tests/benchmarks/bench_race.py $(ARGS)
	$(PYTHON) tests/benchmarks/bench_folds.py

bench-scale: $(VENV)/.ready-bench ## What large grids cost the orchestrator itself, measured and simulated; ten minutes
	$(PYTHON) tests/benchmarks/bench_scale.py $(ARGS)

bench-limit: $(VENV)/.ready-bench build/jpegs $(DATA) ## How near we come to what the machine can do, into docs/speed.md; a quarter of an hour (ARGS="race": that part again)
	$(PYTHON) tests/benchmarks/bench_limit.py --classes "$(DATA)" --backbone "$(BACKBONE)" $(ARGS)

bench-gpu: $(VENV)/.ready-gpu ## What one GPU gives: steps, 1 to 8 trials at once, memory against the forecast; minutes
	$(PYTHON) tests/benchmarks/bench_gpu.py $(ARGS)

picture: setup-test ## Draw docs/report.png, the README's picture, from a run of the example
	$(PYTHON) -m orchestrator.grid --output build/picture
	$(PYTHON) docs/picture.py build/picture/shirts/report.html docs/report.png

lint: setup-test ## Check the code with ruff, and its types with mypy
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check --quiet .
	$(PYTHON) -m mypy

audit: setup ## Look up known vulnerabilities of the pinned dependencies
	@$(PYTHON) -m pip install --quiet --disable-pip-version-check pip-audit
	$(PYTHON) .ci/audit.py

constraints: setup ## Pin the dependencies anew in constraints.txt (newest versions: ARGS=--upgrade)
	$(PYTHON) -m pip install --quiet uv
	$(PYTHON) -m uv pip compile --quiet --universal --python-version 3.11 --fork-strategy fewest --no-annotate \
		--custom-compile-command "make constraints" --extra gpu --extra heic --extra test --extra bench \
		--output-file constraints.txt $(ARGS) pyproject.toml

# A .venv without one of these marks was made by somebody else.
ours = [[ -e $(VENV)/.installing || -e $(VENV)/.ready ]]

clean: ## Remove .venv and all that was built here (runs/ stays)
	if $(ours); then rm -rf $(VENV); fi
	rm -rf build/jpegs build/jpegs.half build/classes build/classes.half build/limit.json build/limit-tiny.json batch_orchestrator.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	rmdir build 2>/dev/null || true
	find orchestrator jobs tests -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true

# $(call install,WHAT): `.installing` stands while pip works, so an environment that pip left half-made is never taken
# for a whole one: the next call makes it anew. Bytecode is compiled here on all cores, not by pip on one.
# compileall fails where a library ships templates that no Python compiles, so its status says nothing.
comma := ,

define install
touch $(VENV)/.installing
$(PYTHON) -m pip install --quiet --disable-pip-version-check --no-compile --constraint constraints.txt --editable '$1'
$(PYTHON) -m compileall -qq -j 0 $(VENV)/lib/python3.*/site-packages || true
rm $(VENV)/.installing
touch $@
endef

$(VENV)/.ready-test: $(VENV)/.ready
	@echo "setup: adding what the tests need"
	$(call install,.[test])

$(VENV)/.ready-bench: $(VENV)/.ready-test
	@echo "setup: adding what the benchmarks need"
	$(call install,.[test$(comma)bench])

# CUDA's libraries, where there is a driver for them.
$(VENV)/.ready-gpu: $(VENV)/.ready
	@if command -v nvidia-smi >/dev/null; then
		echo "setup: adding what a GPU needs"
		$(call install,.[gpu])
	fi

build/jpegs build/classes: build/%:
	@idx=/usr/share/datasets/fashion-mnist
	if [[ ! -d $$idx ]]; then
		echo "bench: needs Fashion-MNIST in $$idx; on Debian and Ubuntu: apt-get install dataset-fashion-mnist" >&2
		exit 1
	fi
	rm -rf $@.half
	$(PYTHON) tests/benchmarks/make_$*.py $$idx $@.half
	mv $@.half $@

$(VENV)/.ready: pyproject.toml constraints.txt
	@if [[ -e $(VENV)/.installing ]] || ! $(PYTHON) -m pip --version >/dev/null 2>&1; then
		python=
		for name in python3 python3.13 python3.12 python3.11; do
			if "$$name" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null; then
				python=$$name
				break
			fi
		done
		if [[ -z $$python ]]; then
			echo "setup: needs Python 3.11, 3.12 or 3.13 as python3 or python3.X on PATH; found $$(python3 --version 2>&1 || true)" >&2
			exit 1
		fi
		if ! "$$python" -c 'import ensurepip, venv' 2>/dev/null; then
			version=$$("$$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
			echo "setup: $$python cannot make virtual environments; on Debian and Ubuntu: apt-get install python$$version-venv" >&2
			exit 1
		fi
		if [[ -e $(VENV) ]] && ! $(ours); then
			echo "setup: $(VENV) must be one that make has made, and has no pip: move it, or say VENV=another" >&2
			exit 1
		fi
		echo "setup: making $(VENV) with $$("$$python" --version)"
		rm -rf $(VENV)
		mkdir $(VENV)
		touch $(VENV)/.installing
		"$$python" -m venv $(VENV)
	fi
	echo "setup: installing the pinned dependencies (3 GB, minutes the first time)"
	$(call install,.)
