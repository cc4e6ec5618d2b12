# Everything a clone needs: `make train`, `make test`. Python 3.11-3.13 and make are enough to start.
PYTHON ?= python3
VENV ?= .venv
# rl_zoo3 brings many packages that nothing else here needs.
ZOO_VENV ?= .venv-zoo
# RLlib wants an older gymnasium.
RAY_VENV ?= .venv-ray
PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed

ALGO ?= ppo
GAME ?= pong
TIMESTEPS ?= 400000
SEED ?= 0
GAMES ?= pong
SEEDS ?= 0
JOBS ?= 2
FUZZ_SECONDS ?= 60
# More flags for the runner, for example ARGS="--n-envs 16 --device cuda".
ARGS ?=

.PHONY: help install train race benchmark benchmark-gpu test test-slow test-gpu fuzz golden rooms test-zoo test-ray docs release-check lint format clean

help:  ## Show the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/'

$(STAMP): setup.cfg constraints.txt requirements.txt requirements-dev.txt pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(None if (3, 11) <= sys.version_info[:2] <= (3, 13) else "mnv4_rl needs Python 3.11 to 3.13, this is %s; try `make PYTHON=python3.12 ...`" % sys.version.split()[0])'
	@echo "installing into $(VENV), which takes a few minutes; most of it is PyTorch"
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet -c constraints.txt -e ".[contrib,hub,export]" -r requirements.txt -r requirements-dev.txt
	$(PY) -m pip install --quiet --no-deps -c constraints.txt timm
	@touch $@

install: $(STAMP)  ## Create .venv and install everything the commands below need

train: $(STAMP)  ## Train on Atari from pixels: GAME=pong TIMESTEPS=400000 SEED=0 ALGO=ppo ENCODER=nature
	@$(if $(filter ppo dqn,$(ALGO)),,$(error ALGO must be ppo or dqn, got $(ALGO); QR-DQN is ALGO=dqn ARGS="--algo qrdqn"))
	$(PY) experiments/atari_$(ALGO).py --game $(GAME) --total-timesteps $(TIMESTEPS) --seed $(SEED) $(if $(ENCODER),--encoder $(ENCODER)) $(ARGS)

race: $(STAMP)  ## Train NatureCNN and rl_s2 side by side and draw both: GAMES="pong breakout" SEEDS="0 1" JOBS=2
	$(PY) experiments/race.py --name mine --games $(GAMES) --seeds $(SEEDS) --jobs $(JOBS) --results-dir runs/races $(ARGS)
	$(PY) experiments/report.py --races runs/races/race_mine.csv --games $(GAMES) --seeds $(SEEDS) --name race_mine --results-dir runs/races

benchmark: $(STAMP)  ## Measure encoders and training against NatureCNN and plain SB3; run it with nothing else running
	$(PY) experiments/benchmark.py $(ARGS)

benchmark-gpu: $(STAMP)  ## Measure everything on a GPU in 9 minutes: tests, encoders, PPO, DQN, Pong with the time left
	$(PY) experiments/benchmark_gpu.py --budget-seconds 540 --device cuda $(ARGS)

test: $(STAMP)  ## The default tests (8 to 10 minutes on 2 cores; JOBS=8 if you have 8)
	OMP_NUM_THREADS=1 $(PY) -m pytest -m "not slow" -n $(JOBS) --dist loadfile

test-slow: $(STAMP)  ## The long tests: learning, memory, whole commands
	$(PY) -m pytest -m slow

test-zoo:  ## rl-zoo's train, enjoy and -optimize with our policies, in an environment of its own
	$(PYTHON) -m venv $(ZOO_VENV)
	$(ZOO_VENV)/bin/python -m pip install --quiet -c constraints.txt . pytest rl_zoo3==2.9.2 requests pandas opencv-python-headless
	$(ZOO_VENV)/bin/python -m pytest --noconftest -q tests/zoo/zoo_checks.py

test-ray:  ## Races and searches on a simulated Ray cluster, and RLlib, in an environment of its own (12 minutes)
	$(PYTHON) -m venv $(RAY_VENV)
	$(RAY_VENV)/bin/python -m pip install --quiet -c constraints-rllib.txt -e ".[tune,rllib]" -r requirements.txt pytest pytest-xdist
	$(RAY_VENV)/bin/python -m pytest --noconftest -q -rP -n 2 --dist loadfile tests/scale/*_checks.py

fuzz: $(STAMP)  ## Spoil files of every kind for FUZZ_SECONDS=60 a test, or as long as you like
	FUZZ_SECONDS=$(FUZZ_SECONDS) $(PY) -m pytest tests/fuzz

test-gpu: $(STAMP)  ## The tests of devices alone, on every one there is (3 minutes on a GPU)
	$(PY) -m pytest tests/gpu

golden: $(STAMP)  ## Rewrite the pinned numbers in tests/golden; review the diff before committing it
	$(PY) -m tests.golden_numbers

rooms: $(STAMP)  ## Draw the rooms of the code and the imports between them, docs/rooms.svg
	$(PY) -m tests.rooms

docs: $(STAMP)  ## Build the documentation into site/; open site/index.html
	$(PY) -m sphinx -W --keep-going -q -c docs -b html . site

release-check: $(STAMP)  ## Build wheel and sdist (MNV4_RL_REPOSITORY=https://...), check them, and run README's lines from the wheel alone
	rm -rf dist .release && $(PYTHON) -m venv .release
	.release/bin/python -m pip install --quiet -c constraints.txt build twine
	.release/bin/python -m build --quiet
	.release/bin/python -m twine check --strict dist/*
	.release/bin/python -m pip install --quiet -c constraints.txt dist/*.whl
	$(PY) tests/readme_python.py | (cd .release && bin/python -)
	rm -rf .release

lint: $(STAMP)  ## ruff and mypy
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

format: $(STAMP)  ## Let ruff rewrite what it can
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

clean:  ## Remove the virtual environment and caches (runs/ stays)
	rm -rf $(VENV) .release site $(ZOO_VENV) $(RAY_VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
