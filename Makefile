# Every target sets itself up: `make demo` and `make test` work in a fresh clone.
# Needs Python >= 3.11 (choose another one with PYTHON=...) and make; installs into .venv only.

PYTHON ?= python3
VENV := .venv
STAMP := $(VENV)/.gtp-policy-installed
BIN := $(VENV)/bin
# The versions to install; `make setup CONSTRAINTS=/dev/null` takes the newest ones instead.
CONSTRAINTS ?= constraints.txt
LOWEST := .venv-lowest
RUNTIME := .venv-runtime
BUILD := .venv-build
PEERS := outputs/peers
OGBENCH := outputs/ogbench
WANDB := outputs/wandb
METAWORLD := outputs/metaworld
# Quiet: neither a newer pip nor a successful installation is worth a newcomer's reading.
PIP := $(BIN)/python -m pip --disable-pip-version-check -q
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadgroup

# The stamp names the checkout it was written for. One that is missing (first call, interrupted
# install), names another place (the folder was moved) or belongs to an interpreter that does not
# start needs a new environment; a changed pyproject.toml or constraints.txt only an update.
VALID := $(shell [ "$$(cat $(STAMP) 2>/dev/null)" = "$(CURDIR)" ] && $(BIN)/python -c "" 2>/dev/null && echo yes)

# One thread each: the tests run in two processes, and small tensors gain nothing from more.
export OMP_NUM_THREADS ?= 1

.DEFAULT_GOAL := help
.PHONY: help setup demo readme-picture test test-quick test-packaging test-runtime test-extras lint format docs build release audit bench-bandit bench-pointmaze \
	bench-datasets bench-hosts bench-speed bench-peers bench-growth bench-runtime bench-parity robot-logs bench-memory bench-memmap bench-scaling bench-imports bench-host-speed \
	bench-gpu bench-walks bench-page models notebooks pointmaze-data ogbench-data metaworld-data pendulum-data mixed-data tasks aggregates results results-page scorecard test-lowest test-cpus test-hosts-own \
	tables clean FORCE

help:  ## show this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 18

setup: $(STAMP)  ## create .venv with the pinned versions (every other target does this by itself)

$(STAMP): pyproject.toml constraints.txt $(if $(VALID),,FORCE)
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11))" || { \
		echo "gtp-policy needs Python 3.11 or newer; '$(PYTHON)' is not. Try: make PYTHON=python3.11 ..." >&2; \
		exit 1; }
	@$(if $(VALID),,echo "Creating $(VENV) ..."; rm -rf $(VENV); $(PYTHON) -m venv $(VENV))
	@rm -f $(STAMP)
	@echo "Installing the development versions into $(VENV) (minutes on the first call) ..."
	@$(PIP) install -c $(CONSTRAINTS) torch hatchling
	@$(PIP) install -c $(CONSTRAINTS) --no-build-isolation -e '.[dev]'
	@printf '%s' '$(CURDIR)' > $(STAMP)

demo: $(STAMP)  ## collect a maze dataset, train GTP on it, evaluate, write pictures (three minutes of one core)
	$(BIN)/python -m examples.quickstart

readme-picture: demo  ## the picture on top of the README, of what the demo has drawn
	$(BIN)/python -m benchmarks.maze_picture

test: lint  ## lint, types, then every test with coverage (but for test-packaging)
	$(PYTEST) -m "not packaging" --cov --cov-report=term

test-quick: $(STAMP)  ## the fast tests of the core, about a minute
	HYPOTHESIS_PROFILE=few $(PYTEST) -m "not slow and not packaging" gtp_policy tests --ignore=tests/adapters --ignore=tests/benchmarks \
		--ignore=tests/distributed --ignore=tests/engine --ignore=tests/examples --ignore=tests/export \
		--ignore=tests/kernels --ignore=tests/reliability --ignore=tests/testing --ignore=gtp_policy/testing \
		--ignore=tests/test_documentation.py --ignore=tests/test_packaging.py --ignore=tests/test_site.py

# Minutes, most of them pip's: the wheel's dependencies are installed once more.
test-packaging: $(STAMP)  ## build the release, install it into a new environment, use it there
	$(BIN)/python -m pytest tests/test_packaging.py

# `make test` runs the same tests beside torch.
test-runtime: $(RUNTIME)/.installed  ## the tests of gtp-policy-runtime where there is no torch
	cd runtime && ../$(RUNTIME)/bin/python -m pytest -p no:cacheprovider

$(RUNTIME)/.installed: runtime/pyproject.toml constraints.txt
	@rm -rf $(RUNTIME) && $(PYTHON) -m venv $(RUNTIME)
	@$(RUNTIME)/bin/python -m pip --disable-pip-version-check -q install -c $(CONSTRAINTS) './runtime[serve]' pytest hypothesis
	@$(RUNTIME)/bin/python -m pip -q uninstall -y gtp-policy-runtime && touch $@

lint: $(STAMP)  ## ruff and mypy
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy --strict gtp_policy runtime/gtp_runtime
	$(BIN)/python -m mypy adapters/gtp_datasets adapters/gtp_experiments adapters/gtp_sb3 adapters/gtp_tianshou

format: $(STAMP)  ## rewrite the sources in the house style
	$(BIN)/python -m ruff check --fix .
	$(BIN)/python -m ruff format .

docs: $(STAMP)  ## spell-check and build the documentation with its gallery, warnings are errors, and check the pages (two minutes)
	$(BIN)/codespell *.md docs examples gtp_policy adapters runtime benchmarks tests
	$(BIN)/python -m sphinx -W --keep-going -b html docs docs/_build/html
	$(BIN)/python docs/check.py docs/_build/html

build: $(STAMP)  ## build the source archives of both distributions, and the wheels from them
	$(BIN)/python -m build --no-isolation
	$(BIN)/python -m build --no-isolation --outdir dist runtime

release: $(STAMP)  ## build as `make build` does, with tools whose every file is known by its hash
	@rm -rf $(BUILD) && $(PYTHON) -m venv $(BUILD)
	@$(BUILD)/bin/python -m pip --disable-pip-version-check -q install --require-hashes --no-deps -r constraints-build.txt
	$(BUILD)/bin/python -m build --no-isolation
	$(BUILD)/bin/python -m build --no-isolation --outdir dist runtime

audit: $(STAMP)  ## look up known vulnerabilities of what is installed, and list its licences (needs the network)
	@mkdir -p outputs
	pipx run pip-licenses==5.5.5 --python $(BIN)/python --with-urls --format=markdown --output-file outputs/licences.md
	pipx run pip-audit==2.10.1 --path "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"

bench-bandit: $(STAMP)  ## the four-mode bandit, five seeds, as JSON
	$(BIN)/python -m benchmarks.bandit

bench-pointmaze: $(STAMP)  ## PointMaze success rates, five seeds, as JSON
	$(BIN)/python -m benchmarks.pointmaze

bench-datasets: $(STAMP)  ## conversion of a million transitions, time and memory
	$(BIN)/python -m benchmarks.datasets

bench-hosts: $(STAMP)  ## the core, Tianshou and Stable-Baselines3 on the same data, as JSON
	$(BIN)/python -m benchmarks.hosts

scorecard: $(STAMP)  ## the reliability trials at release counts (resumable), and their page
	$(BIN)/python -m benchmarks.scorecard
	$(BIN)/python -m benchmarks.scorecard --page

test-lowest:  ## the tests of core and hosts with the lowest versions that users may have
	@test -f $(LOWEST)/.installed -a $(LOWEST)/.installed -nt constraints-lowest.txt || { \
		echo "Installing the lowest versions into $(LOWEST) ..."; rm -rf $(LOWEST) && \
		$(PYTHON) -m venv $(LOWEST) && \
		$(LOWEST)/bin/python -m pip --disable-pip-version-check -q install -c constraints-lowest.txt torch hatchling && \
		$(LOWEST)/bin/python -m pip --disable-pip-version-check -q install -c constraints-lowest.txt \
			--no-build-isolation '.[csv,datasets,distributed,experiments,export,fast,hub,lerobot,plots,sb3,slurm,tensorboard,testing,tianshou]' './runtime[serve]' \
			pytest-timeout tensorboard rich psutil && \
		$(LOWEST)/bin/python -m pip -q uninstall -y gtp-policy gtp-policy-runtime && touch $(LOWEST)/.installed; }
	PYTHONPATH=$(CURDIR):$(CURDIR)/adapters:$(CURDIR)/runtime $(LOWEST)/bin/python -m pytest -p no:cacheprovider tests/adapters tests/export tests/kernels \
		tests/testing runtime/tests tests/test_checkpoint.py tests/test_config.py tests/test_learner.py tests/test_actor.py tests/test_loss.py

test-extras: $(PEERS)/.installed $(OGBENCH)/.installed $(METAWORLD)/.installed $(WANDB)/.installed  ## the tests that need d3rlpy, OGBench, Meta-World or W&B (two minutes)
	PYTHONPATH=$(PEERS) $(BIN)/python -m pytest tests/adapters/experiments/test_peers.py
	PYTHONPATH=$(OGBENCH) $(BIN)/python -m pytest tests/adapters/test_ogbench.py tests/benchmarks/test_ogbench_data.py
	PYTHONPATH=$(METAWORLD) $(BIN)/python -m pytest tests/benchmarks/test_metaworld_data.py
	PYTHONPATH=$(WANDB) $(BIN)/python -m pytest tests/adapters/experiments/test_trackers.py

test-cpus: $(STAMP)  ## the numerical tests as other processors would compute (some minutes for each of twelve settings)
	$(BIN)/python -m tests.cpus -n 2 --dist loadgroup

# Nothing is fetched: sb3-contrib has to be installed for its suites, or on PYTHONPATH.
test-hosts-own: $(STAMP)  ## the hosts' own tests with GTP in their algorithm's place: SB3=, CONTRIB=, TIANSHOU= name checkouts (an hour)
	$(BIN)/python -m tests.hosts_own $(if $(SB3),--sb3 '$(SB3)') $(if $(CONTRIB),--contrib '$(CONTRIB)') \
		$(if $(TIANSHOU),--tianshou '$(TIANSHOU)') $(if $(SUITE),--only '$(SUITE)')

bench-speed: $(STAMP)  ## time of updates and actions against a naive transcription and Tianshou, as JSON
	$(BIN)/python -m benchmarks.speed

# d3rlpy requires an older gymnasium than the hosts need: it goes into a separate folder, without
# its dependencies, and is laid over .venv for this one command.
bench-peers: $(PEERS)/.installed  ## the same with d3rlpy's algorithms as further contenders
	PYTHONPATH=$(PEERS) $(BIN)/python -m benchmarks.speed

$(PEERS)/.installed: benchmarks/constraints-peers.txt | $(STAMP)
	@rm -rf $(PEERS)
	@$(PIP) install --no-deps --target $(PEERS) -r benchmarks/constraints-peers.txt
	@touch $@

# Meta-World takes an older MuJoCo than .venv has: it comes first on the path for these commands only.
metaworld-data: $(METAWORLD)/.installed  ## data of Meta-World's scripted policies, with noise and failures (minutes; resumes)
	PYTHONPATH=$(METAWORLD) $(BIN)/python -m benchmarks.metaworld_data

$(METAWORLD)/.installed: benchmarks/constraints-metaworld.txt | $(STAMP)
	@rm -rf $(METAWORLD)
	@$(PIP) install --no-deps --target $(METAWORLD) -r benchmarks/constraints-metaworld.txt
	@touch $@

pointmaze-data: $(STAMP)  ## the maze dataset of the project's own controller (a minute)
	MINARI_DATASETS_PATH=$(CURDIR)/outputs/minari $(BIN)/python -c "from examples import pointmaze, quickstart; pointmaze.collect(quickstart.maze_dataset_id(100_000))"

pendulum-data: $(STAMP)  ## Pendulum data of a mediocre controller (seconds)
	$(BIN)/python -m benchmarks.pendulum_data

mixed-data: $(STAMP)  ## train several agents per locomotion task and mix their data (an hour; resumes)
	$(BIN)/python -m benchmarks.mixed_data

# OGBench is laid over .venv as d3rlpy is, for the commands that need it.
ogbench-data: $(OGBENCH)/.installed  ## data of OGBench's manipulation tasks from its scripted oracles (minutes; resumes)
	PYTHONPATH=$(OGBENCH) $(BIN)/python -m benchmarks.ogbench_data

$(OGBENCH)/.installed: benchmarks/constraints-ogbench.txt | $(STAMP)
	@rm -rf $(OGBENCH)
	@$(PIP) install --no-deps --target $(OGBENCH) -r benchmarks/constraints-ogbench.txt
	@touch $@

$(WANDB)/.installed: | $(STAMP)
	@rm -rf $(WANDB)
	@$(PIP) install --target $(WANDB) -c constraints.txt wandb==0.31.0
	@touch $@

bench-runtime: $(STAMP)  ## latency without torch at 100 Hz (half an hour), and a server under load (ten minutes), as JSON
	$(BIN)/python -m benchmarks.runtime
	$(BIN)/python -m benchmarks.serving

bench-parity: $(STAMP)  ## how far exported files are from their policies (a quarter of an hour), as JSON
	$(BIN)/python -m benchmarks.parity

robot-logs: $(STAMP)  ## the tutorial from robot logs to a policy: its pictures and figures (some minutes)
	$(BIN)/python examples/robot_logs.py
	mkdir -p docs/tutorials/robot-logs && cp outputs/robot-logs/*.png docs/tutorials/robot-logs/
	cp outputs/robot-logs/measured.json benchmarks/results/robot_logs.json

models: pointmaze-data $(OGBENCH)/.installed  ## train the policies that are shipped in models/, with cards and pictures (some minutes each; resumes)
	test -f outputs/data/pendulum-mediocre.hdf5 || $(BIN)/python -m benchmarks.pendulum_data
	PYTHONPATH=$(OGBENCH) $(BIN)/python -m benchmarks.ogbench_data --kind demonstrations
	PYTHONPATH=$(OGBENCH) $(BIN)/python -m benchmarks.models

notebooks: $(STAMP)  ## execute the notebooks and keep their outputs (a minute)
	cd examples/notebooks && PATH=$(CURDIR)/$(BIN):$$PATH jupyter execute --inplace --NotebookClient.record_timing=False *.ipynb
	rm -rf examples/notebooks/*.zip examples/notebooks/.hypothesis

bench-growth: $(STAMP)  ## time of an update as sizes grow, as JSON
	$(BIN)/python -m benchmarks.growth

bench-memory: $(STAMP)  ## memory of training over imports, as JSON
	$(BIN)/python -m benchmarks.memory

bench-memmap: $(STAMP)  ## training on a table in files, beside one in memory (22 GB of disk), as JSON
	$(BIN)/python -m benchmarks.memmap

bench-scaling: $(STAMP)  ## one update by two processes, and what eight GPUs would gain on paper, as JSON
	$(BIN)/python -m benchmarks.scaling

bench-imports: $(STAMP)  ## import time over torch's, as JSON
	$(BIN)/python -m benchmarks.imports

bench-host-speed: $(STAMP)  ## update rate inside the hosts' training loops, as JSON
	$(BIN)/python -m benchmarks.host_speed

bench-gpu: $(STAMP)  ## everything on a GPU, step by step, into outputs/gpu (goes on where it stopped)
	$(BIN)/python -m benchmarks.gpu --output outputs/gpu

bench-walks: $(STAMP)  ## the core's lines of code, and the files that a minibatch and an action pass, as JSON
	$(BIN)/python -m benchmarks.lines
	$(BIN)/python -m benchmarks.walks

bench-page: $(STAMP)  ## write the page on performance and its pictures from the benchmarks' JSON
	$(BIN)/python -m benchmarks.performance

tasks: $(STAMP)  ## list the tasks of the comparison, their commands, and which data are missing
	$(BIN)/python -m benchmarks.tasks

aggregates: $(STAMP)  ## tables and pictures over all tasks of the runs below RUNS (outputs/experiments)
	$(BIN)/python -m benchmarks.aggregates $(or $(RUNS),outputs/experiments) --pictures outputs/pictures

results: $(PEERS)/.installed $(OGBENCH)/.installed  ## run the studies (hours; resumes), then write docs/results.md
	test -f benchmarks/results/failing.json || $(BIN)/python -m benchmarks.failing
	test -f benchmarks/results/teachers.json || $(BIN)/python -m benchmarks.teachers
	test -f benchmarks/results/signatures.json || $(BIN)/python -m benchmarks.signatures
	PYTHONPATH=$(OGBENCH) $(BIN)/python -m benchmarks.ogbench_data --kind demonstrations
	PYTHONPATH=$(PEERS):$$PYTHONPATH $(BIN)/python -m benchmarks.studies run; status=$$?; \
		$(BIN)/python -m benchmarks.studies collect && $(BIN)/python -m benchmarks.results_page && exit $$status

results-page: $(STAMP)  ## write docs/results.md from the results that are there
	$(BIN)/python -m benchmarks.results_page

tables: $(STAMP)  ## write what is generated of the README and of other pages
	$(BIN)/python -m benchmarks.tables
	$(BIN)/python docs/architecture.py

clean:  ## remove everything that the other targets made
	rm -rf $(VENV) $(LOWEST) $(RUNTIME) $(BUILD) build dist docs/_build docs/pictures/gallery outputs .coverage .coverage.* .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
