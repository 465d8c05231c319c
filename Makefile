# `make quickstart` and `make test` install all that they need.
# They use an active virtual environment as it is, or make .venv, which sees the system's packages.

PYTHON ?= python3
ifdef VIRTUAL_ENV
  ENV := $(VIRTUAL_ENV)
else
  ENV := .venv
endif
PY := $(ENV)/bin/python
PYTEST := $(PY) -m pytest -q -n auto --dist loadfile
# This mark lies in the environment, so that both are removed together; its name tells clones apart.
INSTALLED := $(ENV)/.installed$(subst /,_,$(CURDIR))
LINTERS := $(INSTALLED).lint
export PYTHONPATH := $(CURDIR)/projects/SMCA
# Waiting threads must not keep a core busy: the machine may have other work.
export OMP_WAIT_POLICY ?= passive

OUTPUT := output/quickstart

.PHONY: quickstart test test-all lint clean

quickstart: $(INSTALLED)
	$(PY) train_net.py --config-file configs/quickstart.yaml OUTPUT_DIR $(OUTPUT)
	$(PY) tools/draw_run.py --config-file $(OUTPUT)/config.yaml

test: $(INSTALLED)
	$(PYTEST) -m "not slow"
	@$(PY) -c "import detectron2" 2>/dev/null || $(PY) -m smca.hosts

test-all: test
	$(PYTEST) -m slow

lint: $(LINTERS)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

$(LINTERS): $(INSTALLED)
	$(PY) -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

$(INSTALLED): setup.py pyproject.toml
	@test -x $(PY) || $(PYTHON) -m venv --system-site-packages $(ENV)
	$(PY) -m pip install --quiet --disable-pip-version-check -e '.[test]'
	@touch $@

clean:
	rm -rf .venv
