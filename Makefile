# make demo   a fair comparison of three blocks on real images, report included (minutes, two CPU cores)
# make test   the whole test suite
# Both set up .venv on their first run. PYTHON=/path/to/python3 chooses another interpreter.

SHELL := /bin/sh
CORES := $(shell nproc 2>/dev/null || echo 2)
DEMO := runs/demo

# Processes that share the cores must not spin while they wait: see docs/speed.md.
export OMP_WAIT_POLICY := PASSIVE
export GOMP_SPINCOUNT := 0

.PHONY: help demo test test-fast bench check format clean

help:
	@echo "make demo        compare blocks on real images and write a report (sets everything up)"
	@echo "make test        run all tests (sets everything up)"
	@echo "make test-fast   run the tests that take seconds"
	@echo "make bench       measure operations, blocks and networks, and write docs/performance.md (an hour)"
	@echo "make check       linters, types, architecture"
	@echo "make clean       remove .venv and caches; results in runs/ stay"

demo: .venv/.installed-train
	@.venv/bin/visgraft study demo --folder $(DEMO)

test: .venv/.installed-dev
	@OMP_NUM_THREADS=1 .venv/bin/python -m pytest -n $(CORES) --dist worksteal

test-fast: .venv/.installed-dev
	@OMP_NUM_THREADS=1 .venv/bin/python -m pytest -n $(CORES) --dist worksteal -m "not slow"

bench: .venv/.installed-dev
	@for suite in ops blocks models; do \
	  .venv/bin/visgraft bench $$suite --allocator both --out benchmarks/results/$$suite-cpu.json || exit 1; \
	done
	@.venv/bin/visgraft bench blocks --only cot --only coord_attention --only selective_kernel \
	  --channels-last --out benchmarks/results/blocks-cpu-channels-last.json
	@.venv/bin/python -m benchmarks.write_performance

check: .venv/.installed-dev
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check .
	@.venv/bin/lint-imports
	@.venv/bin/pyright

format: .venv/.installed-dev
	@.venv/bin/ruff check --fix .
	@.venv/bin/ruff format .

.venv/.installed-train: pyproject.toml
	@scripts/setup_venv.sh train $@

.venv/.installed-dev: pyproject.toml
	@scripts/setup_venv.sh dev $@

clean:
	rm -rf .venv .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find src tests scripts benchmarks -name __pycache__ -prune -exec rm -rf {} +
