# Sets itself up: each goal makes .venv, installs the project into it, then does its work.
# The plain commands stand in the README. PYTHON=python3.12 make test picks another interpreter.

PYTHON ?= python3
VENV := .venv
INSTALLED := $(VENV)/.installed
BUILD_FILES := $(wildcard pyproject.toml setup.py)

.PHONY: demo test check docs fuzz chaos clean

# INDEX=https://download.pytorch.org/whl/cpu make demo takes torch's build for CPUs
demo:
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(if $(INDEX),$(VENV)/bin/python -m pip install torch torchvision --index-url $(INDEX))
	$(VENV)/bin/python -m pip install --quiet -e .
	$(VENV)/bin/fourm-lite demo $(if $(PHOTOS),--photos "$(PHOTOS)") $(if $(OUT),--out "$(OUT)")

test: $(INSTALLED)
	$(VENV)/bin/python -m pytest -n 2

check: $(INSTALLED)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/python .ci/audit.py

# the pages with the API reference, into build/site
docs: $(INSTALLED)
	$(VENV)/bin/zensical build --clean

fuzz: $(INSTALLED)
	FUZZ_CASES=$(or $(CASES),20000) $(VENV)/bin/python -m pytest tests/fuzz -q

# 1,000 kills over all verbs that go on, and readers and writers of one index for 10 minutes
chaos: $(INSTALLED)
	$(VENV)/bin/python tests/chaos/run.py --kills 1000 --seconds 600

$(INSTALLED): $(BUILD_FILES)
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install -e ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) build dist
