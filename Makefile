# One command for each thing that a newcomer or a contributor does. Everything happens in
# .venv, which is made on first use and filled again only when pyproject.toml changes.

PYTHON ?= python3
VENV   := .venv
ARGS   ?=
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip install --disable-pip-version-check
# as many processes as tests/conftest.py says; a range of tests goes to each, and who is done takes
# from the others
TESTS  := --numprocesses=logical --maxprocesses=8 --dist=worksteal
# each keeps all cores busy; then those of one core, two rows at a time
PAPER := layers patterns finetuned_curve mask_similarity
PAPER_ROWS := "data_volume data_finetuned" "lottery_ticket decoder"
PUBLISHED := multiberts pythia olmo
PAPER_RUN = for name; do echo "examples/paper/$$name.py"; $(BIN)/python "examples/paper/$$name.py" $(ARGS); done
BENCHMARKS := benchmarks/spectrum.py benchmarks/sweep.py benchmarks/overhead.py benchmarks/replay.py \
	benchmarks/ranks.py benchmarks/masks.py benchmarks/xray.py benchmarks/pages.py benchmarks/export.py

# modules and tests are compiled once, whatever the environment says: else by each process anew
export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help setup demo pictures test test-fast check format lint types imports prose docs bench bench-detection paper multiberts pythia olmo parts mutants clean

help:
	@echo "make demo    pretrain a small BERT under watch       ARGS=\"--steps 300\""
	@echo "make pictures   README's picture anew, from the page of the demo"
	@echo "make test    run the tests            ARGS=\"-k spectrum\"; all of each family: ARGS=--whole"
	@echo "make test-fast   before a commit: some of every room, a minute"
	@echo "make check   formatting, lint, types, import rules, prose"
	@echo "make docs    build the manual into build/manual"
	@echo "make bench   time the library against the usual way"
	@echo "make bench-detection   score the detector beside others; fifteen minutes, or ARGS=\"--small\""
	@echo "make paper   the paper's experiments, an hour; goes on where it was"
	@echo "make multiberts   what published trainings say; make pythia, make olmo; needs a network"
	@echo "make parts   list what an installation is made of in build/parts.json"
	@echo "make mutants   whether the tests notice small changes of the core, half an hour and more"
	@echo "make setup   only make .venv ready for all of these"
	@echo "make clean   remove .venv and caches; runs/ stays"
	@echo "PYTHON=python3.12 chooses the interpreter of a new .venv"

demo: $(VENV)/.ready-demo
	$(BIN)/python examples/pretrain_bert.py $(ARGS)

# the page of that run as README and the manual show it, and its headline in docs/report.txt
pictures: $(VENV)/.ready-demo $(VENV)/.ready-dev
	test -d runs/demo || $(BIN)/python examples/pretrain_bert.py
	SPARSITYWATCH_PICTURES=docs SPARSITYWATCH_RUN=runs/demo $(BIN)/python -m pytest -n 0 tests/browser/test_page.py -k pictures_of_the_docs

# Python's objects lie on huge pages, where glibc and the kernel give them: in a virtual machine a
# third less processor time. For tests and checks alone: a benchmark measures what users have.
ON_HUGE_PAGES := test test-fast format lint types imports prose
$(ON_HUGE_PAGES): export GLIBC_TUNABLES := glibc.malloc.hugetlb=1
$(ON_HUGE_PAGES): export PYTHONMALLOC := malloc

test: $(VENV)/.ready-dev
	$(BIN)/python -m pytest $(TESTS) $(ARGS)

# leaves out what is slow, starts processes or needs a browser
test-fast: $(VENV)/.ready-dev
	$(BIN)/python -m pytest $(TESTS) -m "not slow and not browser" $(ARGS)

check: format lint types imports prose

format: $(VENV)/.ready-dev
	$(BIN)/python -m ruff format --check .

lint: $(VENV)/.ready-dev
	$(BIN)/python -m ruff check .

types: $(VENV)/.ready-dev
	$(BIN)/python -m mypy

imports: $(VENV)/.ready-dev
	$(BIN)/python $(BIN)/lint-imports --no-cache  # its cache overlooks added modules

# README and the manual: proselint's rules, how long sentences are, how many are passive
prose: $(VENV)/.ready-dev
	$(BIN)/python docs/prose.py

# docs/ is a folder, too; --strict: a warning, such as a link to nowhere, is an error. With --quiet
# none would be counted
docs: $(VENV)/.ready-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict $(ARGS)
	@echo "Open build/manual/index.html, or: $(BIN)/python -m mkdocs serve"

bench: $(VENV)/.ready-dev
	@set -e; for script in $(BENCHMARKS); do echo "$$script"; $(BIN)/python "$$script" $(ARGS); done

bench-detection: $(VENV)/.ready-dev
	$(BIN)/python benchmarks/detection.py $(ARGS)

paper: $(VENV)/.ready-paper
	$(BIN)/python examples/paper/fetch.py
	@set -e -- $(PAPER); $(PAPER_RUN)
	@printf '%s\n' $(PAPER_ROWS) | xargs -P 2 -I{} sh -c 'set -e -- {}; $(PAPER_RUN)'

# says bytes and time first; ARGS="--dry-run" stops there
$(PUBLISHED): $(VENV)/.ready-paper
	$(BIN)/python examples/paper/published.py $@ --page docs/reports/published.md $(ARGS)

# what an installation is made of: a software bill of materials
parts: $(VENV)/.ready-demo
	@mkdir -p build
	$(BIN)/python .ci/parts.py > build/parts.json

# ARGS="--num 4 estimate": four changes of analysis/estimate.py
mutants: $(VENV)/.ready-dev
	$(PIP) --quiet --group mutants
	$(BIN)/python .ci/mutants.py $(ARGS)

setup: $(VENV)/.ready-dev

clean:
	rm -rf $(VENV) build dist *.egg-info .hypothesis .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# dev includes the others
$(VENV)/.ready-dev: pyproject.toml
	$(call install,dev)
	@touch $(VENV)/.ready-demo $(VENV)/.ready-docs $(VENV)/.ready-paper $@

$(VENV)/.ready-paper: pyproject.toml
	$(call install,paper)
	@touch $(VENV)/.ready-demo $@

$(VENV)/.ready-docs: pyproject.toml
	$(call install,docs)
	@touch $@

$(VENV)/.ready-demo: pyproject.toml
	$(call install,demo)
	@touch $@

# .unfinished is there while .venv is worked on: after a kill in the middle, which may leave
# half a package that looks whole, the next run starts from nothing. When pip itself gives up
# (no network, say), what was there is kept.
define install
	@command -v $(PYTHON) >/dev/null || { echo "Expected the command '$(PYTHON)', found none. Install Python 3.10 or newer, or name it: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 10) or sys.exit("Expected Python 3.10 or newer, got %d.%d from $(PYTHON). Name a newer one: make PYTHON=python3.12" % v[:2])'
	@trap 'exit 130' INT TERM HUP; set -e; \
	if [ -e $(VENV)/.unfinished ] || ! $(BIN)/python -m pip --version >/dev/null 2>&1; then \
		echo "Making $(VENV)"; \
		rm -rf $(VENV); mkdir -p $(VENV); touch $(VENV)/.unfinished; \
		$(PYTHON) -m venv $(VENV); \
	fi; \
	echo "Installing sparsitywatch for $(1) into $(VENV); the first time takes some minutes"; \
	touch $(VENV)/.unfinished; status=0; \
	{ $(PIP) 'pip>=25.1' && $(PIP) --group $(1) -e .; } || status=$$?; \
	[ $$status -ge 128 ] || rm -f $(VENV)/.unfinished; \
	exit $$status
endef
