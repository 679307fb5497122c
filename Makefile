# `make` or `make help` lists the targets. Everything runs in .venv, which is made on first use.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check --quiet

# Foreign libraries have an environment of their own: RLlib pins a Gymnasium that is older than the newest.
CLIENTS := .venv-clients
# So has Sony's Model Compression Toolkit, which quantenv is raced with.
PEERS := .venv-peers

# Options of train-agent are handed on only when they are set: the rest comes from experiments/configs/train.yaml.
TRAIN_OPTIONS := $(if $(TASK),--task '$(TASK)') $(if $(AGENT),--agent '$(AGENT)') $(if $(METRIC),--metric '$(METRIC)') \
	$(if $(BUDGET),--budget '$(BUDGET)') $(if $(EVALUATIONS),--evaluations '$(EVALUATIONS)') $(if $(SEED),--seed '$(SEED)')

.DEFAULT_GOAL := help
.PHONY: help install train-agent finetune validate tensorboard bench benchmark bench-regret report bench-sensitivity bench-sensitivity-images bench-integer bench-channel-groups bench-fidelity bench-transfer bench-pareto bench-cifar10 bench-peers results test test-fast test-clients docs fuzz lint check clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-18s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))
	@echo "  Variables: AGENT TASK METRIC BUDGET EVALUATIONS SEED (train-agent), RUN=<folder>, ARGS=\"--option value\""

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "quantenv needs Python 3.11 or newer, but '$(PYTHON)' is not (or is missing); say which: make PYTHON=python3.12"; \
		exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) -c constraints.txt -e .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) -c constraints.txt -e '.[dev]'
	@touch $(VENV)/.installed $@

$(VENV)/.installed-benchmark: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) -c constraints.txt -e '.[benchmark,search]'
	@touch $(VENV)/.installed $@

$(VENV)/.installed-docs: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) -c constraints.txt -e '.[docs,search]'
	@touch $(VENV)/.installed $@

$(CLIENTS)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	$(PYTHON) -m venv $(CLIENTS)
	$(CLIENTS)/bin/python -m pip install --disable-pip-version-check --quiet -c constraints.txt -e '.[clients]'
	@touch $@

$(PEERS)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install --disable-pip-version-check --quiet -c constraints.txt -e '.[peers]'
	@touch $@

install: $(VENV)/.installed ## make .venv and install quantenv into it

train-agent: $(VENV)/.installed ## search, fine-tune and compare: AGENT= TASK= METRIC= BUDGET= EVALUATIONS= SEED=
	$(BIN)/quantenv train $(TRAIN_OPTIONS) $(ARGS)

finetune: $(VENV)/.installed ## fine-tune a run's best allocation: RUN=<folder>
	$(BIN)/quantenv finetune $(if $(RUN),--run '$(RUN)') $(ARGS)

validate: $(VENV)/.installed ## evaluate what a run recorded again and compare: RUN=<folder>
	$(BIN)/quantenv validate $(if $(RUN),'$(RUN)') $(ARGS)

tensorboard: $(VENV)/.installed ## look at the runs' curves in a browser
	$(BIN)/tensorboard --logdir $(or $(RUN),runs) --host localhost $(ARGS)

bench: $(VENV)/.installed ## evaluation, enumeration, table environments and the store: all claims (half an hour)
	$(BIN)/python -m experiments.studies.bench $(ARGS)
	$(BIN)/python -m experiments.studies.bench_ilp

benchmark: $(VENV)/.installed-benchmark ## every agent on the table tasks, and the leaderboard (9 minutes)
	$(BIN)/quantenv benchmark $(ARGS)

bench-regret: $(VENV)/.installed-benchmark ## exact regret of the learners after up to 5,000 evaluations (20 minutes)
	$(BIN)/quantenv benchmark --config experiments/configs/regret.yaml $(ARGS)

bench-transfer: $(VENV)/.installed ## evaluations to a target, from scratch and from an agent of another task (minutes)
	$(BIN)/python -m experiments.studies.bench_transfer $(ARGS)

bench-pareto: $(VENV)/.installed-benchmark ## how much of the true front one run of `quantenv pareto` finds (minutes)
	$(BIN)/python -m experiments.studies.bench_pareto $(ARGS)

bench-cifar10: $(VENV)/.installed ## ResNet-20 on CIFAR-10 after fine-tuning (half an hour or more; needs QUANTENV_DATA)
	$(BIN)/python -m experiments.studies.bench_cifar10 --allocation experiments/studies/results/resnet20_13x.json $(ARGS)

bench-peers: $(PEERS)/.installed ## the race with Sony's MCT and with HAQ's way (an hour; needs QUANTENV_DATA)
	$(PEERS)/bin/python -m experiments.studies.bench_peers $(ARGS)

report: $(VENV)/.installed-benchmark ## draw runs and benchmarks as one HTML page: RUN=<folder>
	$(BIN)/quantenv report $(or $(RUN),runs/benchmark/default) $(ARGS)

results: $(VENV)/.installed-benchmark ## make every recorded file that is stale, in order: ARGS=--check only says which
	$(BIN)/python -m experiments.studies.record $(ARGS)

bench-sensitivity: $(VENV)/.installed ## how well sums of sensitivities rank allocations (minutes)
	$(BIN)/python -m experiments.studies.bench_sensitivity $(ARGS)

bench-sensitivity-images: $(VENV)/.installed ## how many images sensitivities need, and what they cost (minutes)
	$(BIN)/python -m experiments.studies.bench_sensitivity_images $(ARGS)

bench-integer: $(VENV)/.installed ## simulated quantization against the integer network, layer by layer (minutes)
	$(BIN)/python -m experiments.studies.bench_integer $(ARGS)

bench-channel-groups: $(VENV)/.installed ## what bits for each channel group are worth (minutes)
	$(BIN)/python -m experiments.studies.bench_channel_groups $(ARGS)

bench-fidelity: $(VENV)/.installed ## do cheap rewards rank allocations as full training does? (minutes)
	$(BIN)/python -m experiments.studies.bench_fidelity $(ARGS)

# Every process that the tests start would compile our modules again; and threads that wait for each other in a loop
# take the cores from the other process.
test test-fast: export PYTHONDONTWRITEBYTECODE :=
test test-fast: export OMP_WAIT_POLICY := PASSIVE

test: $(VENV)/.installed-dev ## run all tests, in two processes (7 to 20 minutes)
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

test-fast: $(VENV)/.installed-dev ## the tests that do not take long: all but those of tests/slow.txt (2 minutes)
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --fast $(ARGS)

test-clients: $(CLIENTS)/.installed ## run the environments by RLlib, TorchRL, Tianshou, Minari, RL Zoo and others (minutes)
	QUANTENV_CLIENTS=all $(CLIENTS)/bin/python -m pytest tests/clients $(ARGS)

docs: $(VENV)/.installed-docs ## build the documentation: docs/_build/index.html
	$(BIN)/python -m sphinx -q -W --keep-going -b html docs docs/_build

fuzz: $(VENV)/.installed-dev ## read 20,000 mutants of every kind of file (10 minutes): ARGS="--only weights --seed 1"
	$(BIN)/python -m tests.fuzz $(ARGS)

lint: $(VENV)/.installed-dev ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

check: lint test ## what continuous integration runs

clean: ## remove .venv and the tools' caches
	rm -rf $(VENV) $(CLIENTS) $(PEERS) docs/_build docs/generated build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
