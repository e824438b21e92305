# Works with GNU Make 3.81 (the one macOS ships) and any POSIX sh.

PROFILE ?= quick
JOBS    ?=
ONLY    ?=
FORCE   ?=
COMPUTE ?=
VENV    ?= .venv

# The Python that makes .venv: the one PYTHON names, else the first of these that is version 3.11.
NEEDED     := 3.11
version_of  = $(shell "$(1)" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
PYTHON     ?= $(firstword $(foreach p,python3.11 python3 python,$(if $(filter $(NEEDED),$(call version_of,$(p))),$(p))) python3)

# The Python that runs everything else, and the file that says it can.
ifeq ($(strip $(VENV)),)
  PY  := $(shell command -v python || command -v python3)
  ENV :=
else
  PY   = $(if $(wildcard $(VENV)/bin/python),,$(if $(ENV),,$(error no Python in $(VENV)/bin; VENV takes the folder of an environment)))$(VENV)/bin/python
  ENV := $(if $(filter .venv,$(VENV)),.venv/.installed)
endif
ifeq ($(ENV),)
  # An environment of the user's own: `gkp` is this checkout, whether or not that environment has it installed.
  export PYTHONPATH := $(CURDIR)$(if $(PYTHONPATH),:$(PYTHONPATH))
endif

# A misspelt variable would be ignored without a word and another experiment run than the one asked for.
KNOWN   := PROFILE JOBS ONLY FORCE COMPUTE VENV PYTHON GKP_DATA SHELL MAKEFLAGS
GIVEN   := $(foreach v,$(filter-out -*,$(.VARIABLES)),$(if $(filter command,$(firstword $(origin $(v)))),$(v)))
UNKNOWN := $(filter-out $(KNOWN),$(GIVEN))
ifneq ($(UNKNOWN),)
  $(error unknown variable $(firstword $(UNKNOWN)); the ones `make` takes are PROFILE, JOBS, ONLY, FORCE, COMPUTE, VENV, PYTHON and GKP_DATA)
endif

# Any other word would be taken for a 1: COMPUTE=no would compute for hours.
ifneq ($(filter-out 0 1,$(FORCE) $(COMPUTE)),)
  $(error FORCE and COMPUTE take 0 or 1, not $(filter-out 0 1,$(FORCE) $(COMPUTE)))
endif

# Threads that wait by spinning slow a busy machine down twentyfold (an epoch on two threads: 17.6 s against 0.8 s).
export OMP_WAIT_POLICY ?= PASSIVE

# Reports and tests start hundreds of short processes that import gkp: each would compile it anew.
unexport PYTHONDONTWRITEBYTECODE

.DELETE_ON_ERROR:
.PHONY: help reproduce lab test verify check bench zoo publish html clean distclean
.DEFAULT_GOAL := help

help:
	@echo 'make reproduce   show what was measured on CIFAR-10, then run the pipeline live on digits; page: build/report/'
	@echo '                   PROFILE=quick|cifar10|paper   the notebooks on this data (quick: digits), to build/PROFILE/'
	@echo '                   ONLY=00_start_here            one notebook (default: all)'
	@echo '                   JOBS=N                        workers side by side'
	@echo '                   FORCE=1                       notebooks that are up to date too'
	@echo '                   COMPUTE=1                     cifar10: cells that are not committed too (hours); 0: never compute'
	@echo 'make lab         open the notebooks in JupyterLab, with the kernel of this environment'
	@echo 'make test        run the tests; for those in a browser see tests/browser.py'
	@echo 'make verify      check that committed verdicts, cells and notebooks follow from the committed data'
	@echo 'make check       lint, types, and the checks of the artifact itself'
	@echo 'make bench       measure speed against the stated budgets'
	@echo 'make zoo         prune 135 networks of torchvision and timm and compare, about an hour; table: docs/zoo.md'
	@echo 'make html        the report alone, build/report/index.html, and the notebooks of PROFILE (default here: cifar10) as HTML'
	@echo 'make publish     copy measured cells to data/, and executed notebooks back when make verify is green'
	@echo '                   PROFILE=cifar10               whose cells (default here: cifar10)'
	@echo 'make clean       remove build/: the next run computes everything again'
	@echo 'make distclean   remove build/, .venv and every cache'
	@echo ''
	@echo 'The first target that needs Python $(NEEDED) makes .venv from requirements.lock (3 minutes, 6 GB).'
	@echo '  PYTHON=FILE   make it with this Python'
	@echo '  VENV=DIR      use this environment instead; VENV= (empty) uses the active one'
	@echo '  GKP_DATA=DIR  where CIFAR-10 and checkpoints are looked for first'

# Without a profile, or what only one of them can mean, it shows what is committed and runs one notebook live.
CHOSEN := $(filter-out file,$(origin PROFILE))$(ONLY)$(COMPUTE)

reproduce: $(ENV)
	@"$(PY)" -m gkp reproduce $(if $(CHOSEN),--profile '$(PROFILE)') $(if $(JOBS),--jobs '$(JOBS)') $(if $(ONLY),--only '$(ONLY)') $(if $(filter-out 0,$(FORCE)),--force) $(if $(COMPUTE),$(if $(filter 0,$(COMPUTE)),--no-compute,--compute)) $(if $(CHOSEN),--out 'build/$(basename $(notdir $(PROFILE)))')

lab: $(ENV)
	@"$(PY)" -m gkp lab

# One worker a core, eight at most, one thread each; the tests of a file stay together and in order.
test: $(ENV)
	@"$(PY)" -m pytest -q -n logical --maxprocesses 8 --dist loadfile

verify: $(ENV)
	@"$(PY)" -m gkp verify

# Only what is measured on real data is committed: quick is the default of the other targets, not of this one.
publish: $(ENV)
	@"$(PY)" -m gkp publish $(if $(filter file,$(origin PROFILE)),,--profile '$(PROFILE)')

html: $(ENV)
	@"$(PY)" -m gkp html $(if $(filter file,$(origin PROFILE)),,--profile '$(PROFILE)')

check: $(ENV)
	@"$(PY)" -m ruff check .
	@"$(PY)" -m ruff format --quiet --check .
	@"$(PY)" -m mypy
	@"$(PY)" -m pytest -q tests/test_project.py tests/test_make.py $(wildcard tests/test_artifact.py)

bench: $(ENV)
	@"$(PY)" tests/bench.py

# Results are kept in build/zoo; the table goes to docs/zoo.md.
zoo: $(ENV)
	@"$(PY)" tests/zoo.py

# The stamp is written last: an install that fails or is killed leaves none, and the next `make` starts it afresh.
# A finished environment whose lock has changed since is only brought up to date.
.venv/.installed: requirements.lock pyproject.toml
	$(if $(filter $(NEEDED),$(call version_of,$(PYTHON))),,$(error $(wrong_python)))
	@echo 'Installing requirements.lock into .venv with $(PYTHON): about 3 minutes and 6 GB, once.'
	@if [ -f $@ ]; then rm -f $@; else "$(PYTHON)" -m venv --clear .venv; fi
	@$(PIP) install -r requirements.lock || { echo '$(no_packages)' >&2; exit 1; }
	@$(PIP) install --no-deps --no-build-isolation -e .
	@touch $@

wrong_python = gkp needs Python $(NEEDED) and $(PYTHON) is $(or $(call version_of,$(PYTHON)),not a Python that runs); \
  install $(NEEDED), or say where it is: make PYTHON=/path/to/python$(NEEDED)

no_packages = The packages could not be installed: PyPI must be reachable and 7 GB free. The next `make` tries again.

PIP = PIP_ROOT_USER_ACTION=ignore PIP_DISABLE_PIP_VERSION_CHECK=1 .venv/bin/python -m pip -qq --no-input

clean:
	@rm -rf build notebooks/build

distclean: clean
	@rm -rf .venv gkp.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
