# Everything a newcomer, a colleague or a CI machine runs. Each target installs what it needs, once, into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help venv check fix format lint types borders quick figures test slow test-long test-ray test-mteb test-trackers test-page test-kernels test-slurm slurm-campaign slurm-others test-apart gpu faults test-golden test-samples demo demo-check demo-ablation demo-second demo-finetune demo-real demo-real-check clean
# Of pip's many lines, those that take time.
SHOW_LARGE_FILES = /(Downloading|Using cached) .*(MB|GB)|^Installing collected/ { print "  " $$1, $$2, $$3, $$4; fflush() }
# A caller's modules must not shadow those of .venv; and each of the many Pythons of the tests would compile all of them again.
unexport PYTHONPATH PYTHONDONTWRITEBYTECODE

help: ## Say what there is
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

venv: $(INSTALLED) ## Make the virtual environment .venv

$(INSTALLED): pyproject.toml constraints-cpu.txt
	@echo "Installing into $(VENV) (once; some minutes) ..."
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed: make PYTHON=python3.11")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --disable-pip-version-check --no-input --progress-bar off \
	  -c constraints-cpu.txt -e '.[demo,dev,filters]' < /dev/null 2>&1 | tee $(VENV)/pip.log | awk '$(SHOW_LARGE_FILES)' \
	  || { echo "pip failed; the end of $(VENV)/pip.log:"; tail -n 30 $(VENV)/pip.log; exit 1; }
	@touch $@
	@echo "Installed."

check: $(INSTALLED) ## Format, lint, types, borders, quick tests, figures (90 s; 3.5 minutes on slow cores)
	@$(MAKE) --no-print-directory -k -j2 --output-sync=target format lint borders figures types quick

fix: $(INSTALLED) ## Format, and mend what the linter can
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

format: $(INSTALLED)
	@$(BIN)/ruff format --check .

lint: $(INSTALLED)
	@$(BIN)/ruff check .

types: $(INSTALLED)
	@$(BIN)/mypy

borders: $(INSTALLED)
	@$(BIN)/lint-imports --no-logo

quick: $(INSTALLED)
	@$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow and not gpu and not slurm and not page" --ignore=tests/mteb < /dev/null

figures: $(INSTALLED) ## The house style in numbers; size by folder against its budget
	@$(BIN)/python -m tests.architecture.figures

test: $(INSTALLED) ## The whole test suite: what is quick (CHECKED=1: not again behind make check), then what is slow
	@$(MAKE) --no-print-directory -k $(if $(CHECKED),,quick) slow

# By file, because the tests of a file share runs; in the order of the tree, so that small files come last.
slow: $(INSTALLED) ## The test suite without what make check runs: what starts ranks and programs, matrices, whole runs
	@$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "(slow or gpu or slurm) and not (long or page)" --durations=25 < /dev/null

test-long: $(INSTALLED) ## What make test leaves out: further tasks, ranks, modes and kernels of what it looks at (20 minutes)
	@$(BIN)/python -m pytest -m long --durations=15 < /dev/null

test-slurm: $(INSTALLED) ## Jobs on real Slurms of three nodes, started here for the tests (root; 4 to 8 minutes), and on Ray
	@$(BIN)/python -m tests.slurm.cluster -- echo "Two clusters side by side; what they say comes at the end of each."
	@$(MAKE) --no-print-directory -k -j2 --output-sync=target slurm-campaign slurm-others test-ray

# The campaign waits most of its time, so Ray's test runs beside it; the first line has installed Slurm for both.
slurm-campaign slurm-others: $(INSTALLED)
	@$(BIN)/python -m tests.slurm.cluster -- $(BIN)/python -m pytest -rs --durations=3 $(SLURM_TESTS) < /dev/null
slurm-campaign: SLURM_TESTS = tests/slurm/test_campaign.py
slurm-others: SLURM_TESTS = tests/slurm --ignore=tests/slurm/test_campaign.py

# Side by side, because the campaign waits; what changes .venv, or wants apt to itself, comes before, one after another.
test-apart: $(INSTALLED) ## Kernels, mteb, trackers, the search page, Slurm and Ray side by side, as CI does
	@status=0; \
	$(MAKE) --no-print-directory -k -j1 $(VENV)/.triton $(VENV)/.mteb $(VENV)/.page $(VENV)/.ray || status=1; \
	$(BIN)/python -m tests.page.browser install || status=1; \
	$(BIN)/python -m tests.slurm.cluster -- true || status=1; \
	$(MAKE) --no-print-directory -k -j3 --output-sync=target slurm-campaign slurm-others \
	  test-trackers test-kernels test-mteb test-page test-ray || status=1; \
	exit $$status

# Ray is large (79 MB to load, 240 MB on disk), so it is installed where its executor is tested, and nowhere else.
$(VENV)/.ray: $(INSTALLED)
	@$(BIN)/python -m pip install --disable-pip-version-check --no-input -q -c constraints-cpu.txt -e '.[ray]' < /dev/null
	@touch $@

test-ray: $(VENV)/.ray ## Shards built by Ray's workers, byte for byte (installs Ray, once; part of test-slurm)
	@$(BIN)/python -m pytest tests/parity/test_shard_build_ray.py -rs < /dev/null

# mteb brings datasets and sentence-transformers, 450 MB on disk, and takes seconds to import, here only.
$(VENV)/.mteb: $(INSTALLED)
	@$(BIN)/python -m pip install --disable-pip-version-check --no-input -q -c constraints-cpu.txt -e '.[mteb]' < /dev/null
	@touch $@

test-mteb: $(VENV)/.mteb ## mteb measures a small exported model by its own metrics; they equal ours (installs mteb, once)
	@HF_HUB_OFFLINE=1 $(BIN)/python -m pytest tests/mteb -rs < /dev/null

# Apart from .venv: trackio wants another Pillow than the constraints.
$(VENV)/trackers/.installed: $(INSTALLED)
	@$(PYTHON) -m venv $(VENV)/trackers
	@$(VENV)/trackers/bin/python -m pip install --disable-pip-version-check --no-input -q \
	  'wandb>=0.19' 'mlflow-skinny>=3.0' 'trackio>=0.30' pytest pyyaml < /dev/null
	@touch $@

test-trackers: $(VENV)/trackers/.installed ## What Weights & Biases, MLflow and trackio keep of a run, offline (installs them, once)
	@HF_HUB_OFFLINE=1 $(VENV)/trackers/bin/python -m pytest tests/trackers --noconftest -rs < /dev/null

# Chromium is Debian's, playwright only drives it (130 MB on disk).
$(VENV)/.page: $(INSTALLED)
	@$(BIN)/python -m pip install --disable-pip-version-check --no-input -q -c constraints-cpu.txt \
	  playwright axe-playwright-python < /dev/null
	@touch $@

test-page: $(VENV)/.page ## The search page in a headless Chromium, by keyboard alone (installs Chromium, once: root, apt)
	@$(BIN)/python -m tests.page.browser install
	@$(BIN)/python -m pytest tests/page -rs < /dev/null

# What torch's CUDA builds of the pinned torch bring along; 200 MB to load, 690 MB on disk.
$(VENV)/.triton: $(INSTALLED)
	@$(BIN)/python -m pip install --disable-pip-version-check --no-input -q -c constraints-cpu.txt -e '.[kernels-dev]' < /dev/null
	@touch $@

test-kernels: $(VENV)/.triton ## Triton kernels in its interpreter, and compiled for sm_80, 90 and 100; no GPU (installs Triton, once)
	@$(BIN)/python -m pytest tests/kernels -rs < /dev/null

faults: $(INSTALLED) ## Kills, full and failing disks, damage, NaN, hung ranks on tiny ZeRO-3 runs: is anything lost? (73 minutes beside other work; FAULTS="--seed 5")
	@$(BIN)/python -m tests.faults $(FAULTS) < /dev/null

gpu: ## On a GPU machine, with its own torch: check and measure everything in 8 minutes: make gpu PYTHON=python3 [OUT=DIR]
	@$(PYTHON) -m benchmarks.gpu --out $(or $(OUT),runs/gpu) < /dev/null

test-golden: $(INSTALLED) ## Compare with the published code's numbers: make test-golden GOLDEN=DIR
	@$(if $(GOLDEN),CCLM_GOLDEN='$(abspath $(GOLDEN))') $(BIN)/python -m pytest tests/golden -rs < /dev/null

test-samples: $(INSTALLED) ## Read real annotation rows and check their counts: make test-samples SAMPLES=DIR
	@$(if $(SAMPLES),CCLM_SAMPLES='$(abspath $(SAMPLES))') $(BIN)/python -m pytest tests/samples -rs < /dev/null

demo: $(INSTALLED) ## Real corpus to zero-shot retrieval on two ZeRO-3 ranks (about 15 minutes on two cores)
	@$(BIN)/python -m pretrain.demo

demo-check: $(INSTALLED) ## After make demo: is its recall within the documented spread?
	@$(BIN)/python -m benchmarks.demo_seeds runs/demo --within benchmarks/demo_spread.json

demo-ablation: $(INSTALLED) ## The same steps without parallel text: what the second view is worth
	@$(BIN)/python -m pretrain.demo --ablation

demo-second: $(INSTALLED) ## After make demo: its encoders frozen, the fusion encoder trained on with hard negatives (2 minutes)
	@$(BIN)/python -m pretrain.demo --second-stage

demo-finetune: $(INSTALLED) ## After make demo: fine-tune its model on two tasks, in 20 languages, three seeds; tables and galleries
	@$(BIN)/python -m finetune.demo

demo-real: $(INSTALLED) ## As make demo, from the weights of a real multilingual text encoder; more than 60 languages (25 minutes at most)
	@$(BIN)/python -m pretrain.demo_real

demo-real-check: $(INSTALLED) ## After make demo-real: is its recall above the floors?
	@$(BIN)/python -m pretrain.demo_real --check

clean: ## Remove .venv and caches; data and runs stay
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
