# make demo   a small sweep of replay ratios, to its figure     make film RUN=...   a film of a run
# make test   lints and the fast tests, in a few minutes     make test-all   lints and all tests, in half an hour or more
# make docs   the site     make speed   speed, also against SBX
# make fix    spreads shared text to all scripts and writes anew what is generated      make golden   golden files
# make lock   requirements.lock, with the exact version of everything that requirements.txt installs
# All install what they need into .venv. PYTHON=python3.12 chooses another Python (3.11 to 3.13).
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-all lint docs speed film fix golden format clean lock

demo: .venv/ready
	@$(BIN)/python -m benchmark.demo

# The tests' own packages lie apart, so that a script is tested with requirements.txt alone. Two processes take groups of
# tests, the longest first (tests/conftest.py). Programs that are compiled are kept for the session, or where
# JAX_COMPILATION_CACHE_DIR says. KILLS=30 make test-all stops every script at so many random moments instead of one.
PYTEST := PYTHONPATH=.venv/test $(BIN)/python -m pytest --numprocesses=2 --dist=loadgroup --no-loadscope-reorder

test: lint
	$(PYTEST) -m "not slow"

test-all: lint
	$(PYTEST)

lint: .venv/ready .venv/test/ready
	@PYTHONPATH=.venv/test $(BIN)/python -m ruff format --check --quiet . && PYTHONPATH=.venv/test $(BIN)/python -m ruff check --quiet .

# SBX, which the scripts are compared with, has an environment of its own.
speed: .venv/ready .venv/sbx/ready
	@$(BIN)/python -m benchmark.speed

# The site, in site/; its packages lie in an environment of their own.
docs: .venv/docs/ready
	@NO_MKDOCS_2_WARNING=1 .venv/docs/bin/python -m mkdocs build --strict
	@echo "site/index.html is built; with search: $(PYTHON) -m http.server --directory site"

# What the newest checkpoint of a run does: make film RUN=runs/CheetahRun-v1__sac__rr8__1
film: .venv/ready .venv/film-ready
	@$(BIN)/python -m benchmark.film $(RUN)

# After a change of a text that scripts share, made in a script without a parent (or: make fix FROM=algos/c51.py): spreads
# it, and writes anew the lists of the docstrings, the list of all flags, the table of guards and the layout of the code.
fix: .venv/test/ready
	@$(BIN)/python tools/copies.py --fix $(FROM) --lists
	@PYTHONPATH=.venv/test:tests/helpers $(BIN)/python -c 'import golden; golden.write([])'
	@PYTHONPATH=.venv/test $(BIN)/python tests/helpers/guards.py --write
	@PYTHONPATH=.venv/test $(BIN)/python -m ruff format --quiet .

# Only where other results are meant: what the tests compare each script with, or those of one, make golden SCRIPT=dqn
golden: .venv/test/ready
	@PYTHONPATH=.venv/test $(BIN)/python tests/helpers/golden.py --write $(SCRIPT)

# After a change of requirements.txt: from a fresh environment, in which nothing else is installed.
lock:
	@rm -rf .venv/lock && $(PYTHON) -m venv .venv/lock
	@.venv/lock/bin/python -m pip install --quiet --disable-pip-version-check --requirement requirements.txt
	@.venv/lock/bin/python -c "$$LOCK_HEAD" > .venv/lock/new && .venv/lock/bin/python -m pip freeze --all --exclude pip >> .venv/lock/new
	@cp .venv/lock/new requirements.lock

define LOCK_HEAD
import platform as p
print("# All that requirements.txt installs, with exact versions: pip install --requirement requirements.lock")
print(f"# For Python {p.python_version()} on {p.system()}, {p.machine()}. Made by `make lock`.")
endef
export LOCK_HEAD

format: .venv/test/ready
	@PYTHONPATH=.venv/test $(BIN)/python -m ruff format .

clean:
	rm -rf .venv

.venv/ready: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14) and "error: Python 3.11, 3.12 or 3.13 is needed; name one with PYTHON=")'
	@echo "installing requirements.txt into .venv (about 700 MB, once)"
	@$(PYTHON) -m venv .venv || { echo "error: no virtual environment; on Debian: apt install python3-venv"; exit 1; }
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement requirements.txt
	@touch $@

.venv/film-ready: requirements-film.txt .venv/ready
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement requirements-film.txt
	@touch $@

.venv/docs/ready: requirements-docs.txt
	@$(PYTHON) -m venv .venv/docs || { echo "error: no virtual environment; on Debian: apt install python3-venv"; exit 1; }
	@.venv/docs/bin/python -m pip install --quiet --disable-pip-version-check --requirement requirements-docs.txt
	@touch $@

.venv/sbx/ready: requirements-sbx.txt
	@echo "installing requirements-sbx.txt into .venv/sbx (some GB, once)"
	@$(PYTHON) -m venv .venv/sbx || { echo "error: no virtual environment; on Debian: apt install python3-venv"; exit 1; }
	@.venv/sbx/bin/python -m pip install --quiet --disable-pip-version-check --requirement requirements-sbx.txt
	@touch $@

.venv/test/ready: requirements-test.txt requirements-film.txt requirements-rlax.txt requirements-slurm.txt requirements-ray.txt .venv/ready
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade --target .venv/test --requirement requirements-test.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade --target .venv/test --no-deps --requirement requirements-rlax.txt
	@touch $@
