# Everything a person does with this checkout. `make` alone lists it.
#   PYTHON=/path/to/python3   which Python makes the virtual environment
#   ARGS="--detach"           passed on to `atoll boot` by `make boot`
#   ONLY=ipc,state            which benchmarks `make bench` runs
#   TESTS="tests/ipc -x"      what `make test` runs
#   WORKERS=4                 how many processes run it: one more than there are cores, if nothing is said
#   SEEDS=1000                how many worlds `make simulate` lives through; SEED=17 one of them
#   SECONDS=600               how long `make fuzz` runs each target

VENV ?= .venv
BIN := $(VENV)/bin
ARGS ?=
ONLY ?=
TESTS ?= tests
WORKERS ?= $(shell expr $$(nproc) + 1)
SECONDS ?= 60
SEEDS ?= 100
CORE := $(wildcard native/*.c native/*.h native/interface/*.h) native/build.py setup.py pyproject.toml
C_FILES := $(wildcard native/*.c native/*.h native/interface/*.h tests/fuzz/*.c tests/fuzz/*.h tests/native/*.c)
PIP := $(BIN)/python -m pip --disable-pip-version-check

# Whatever starts imports a hundred modules of this checkout: they are compiled once, and not at each start.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help boot test soak simulate fuzz sanitize lint format bench wheel lock clean
.DEFAULT_GOAL := help

help:
	@echo "make boot    build, boot images/rlhf.toml, run the main job on the reviews, report"
	@echo "make test    what a change must pass: about fifteen minutes on two cores"
	@echo "make soak    the same tests at full length"
	@echo "make test-vm   some of them as Debian's default user, in an emulated machine (a part of make soak)"
	@echo "make simulate  kernel, servers and clients in one process, by seeds (SEEDS=1000)"
	@echo "make fuzz    the C core under a fuzzer, a minute a target (SECONDS=600)"
	@echo "make sanitize  the C core's tests on one built with sanitizers, that of threads among them (a part of make soak)"
	@echo "make format  ruff and clang-format, in place"
	@echo "make lint    ruff, mypy, import contract, clang-format"
	@echo "make bench   benchmarks beside their peers (ONLY=ipc,state)"
	@echo "make wheel   dist/*.whl"
	@echo "make lock    both lock files anew from pyproject.toml (UPGRADE=1)"
	@echo "make clean   remove what was built, and what dead nodes left"

# The environment, the locked packages, the core: each is made again only when what it is made from is newer.

$(VENV)/.made:
	@sh .ci/host
	@echo "making the virtual environment $(VENV)"
	@$$(sh .ci/host --python) -m venv $(VENV)
	@touch $@

$(VENV)/.run: requirements.lock $(VENV)/.made
	@echo "installing the packages of requirements.lock"
	@$(PIP) install --quiet --require-hashes -r requirements.lock
	@touch $@

$(VENV)/.dev: requirements-dev.lock $(VENV)/.run
	@echo "installing the packages of requirements-dev.lock"
	@$(PIP) install --quiet --require-hashes -r requirements-dev.lock
	@touch $@

$(VENV)/.core: $(CORE) $(VENV)/.run
	@echo "building the C core"
	@$(PIP) install --quiet --no-build-isolation --no-deps -e .
	@touch $@

boot: $(VENV)/.core
	@$(BIN)/atoll boot images/rlhf.toml --job reviews $(ARGS)

test: $(VENV)/.dev $(VENV)/.core
	$(BIN)/python -m pytest -m "not soak" -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(TESTS)

soak: $(VENV)/.dev $(VENV)/.core
	$(BIN)/python -m pytest -m soak --timeout 0 $(TESTS)

simulate: $(VENV)/.dev $(VENV)/.core
	$(BIN)/python -m tests.simulation $(if $(SEED),--seed $(SEED),--seeds $(SEEDS))

test-vm: $(VENV)/.dev $(VENV)/.core
	$(BIN)/python -m pytest -m soak --timeout 0 -s tests/vm

fuzz: $(VENV)/.dev $(VENV)/.core
	$(BIN)/python -m tests.fuzz $(SECONDS)

sanitize: $(VENV)/.dev $(VENV)/.core
	$(BIN)/python -m tests.fuzz.sanitized
	$(BIN)/python -m tests.fuzz.sanitized --threads

lint: $(VENV)/.dev $(VENV)/.core
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/clang-format --dry-run --Werror $(C_FILES)
	$(BIN)/mypy -p atoll
	PYTHONPATH=.types $(BIN)/lint-imports

format: $(VENV)/.dev
	$(BIN)/ruff check --fix-only --quiet
	$(BIN)/ruff format --quiet
	$(BIN)/clang-format -i $(C_FILES)

bench: $(VENV)/.dev $(VENV)/.core
	$(BIN)/python -m tests.bench $(if $(ONLY),--only $(ONLY))

wheel: $(VENV)/.dev
	rm -rf build
	$(PIP) wheel --quiet --no-build-isolation --no-deps --wheel-dir dist .

lock: $(VENV)/.dev
	sh .ci/lock

clean:
	@if [ -x $(BIN)/atoll ]; then $(BIN)/atoll clean; fi
	rm -rf $(VENV) build dist *.egg-info native/_core.c native/*.so
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
