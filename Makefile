# Everything runs in .venv, which is made on first use.

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin

.PHONY: demo test lint bench clean

demo: $(VENV)/installed
	@$(RUN)/npu-matmul demo

test: $(VENV)/installed
	@$(RUN)/python -m pytest

lint: $(VENV)/installed
	$(RUN)/ruff check .
	$(RUN)/ruff format --check .
	$(RUN)/mypy npu_matmul

bench: $(VENV)/plot-installed
	@mkdir -p bench-results
	@$(RUN)/npu-matmul bench --plot bench-results --json bench-results/cpu.json
	@$(RUN)/python bench/run.py --json bench-results/host.json

$(VENV)/plot-installed: $(VENV)/installed
	@$(RUN)/python -m pip install --quiet --disable-pip-version-check --editable '.[plot]'
	@touch $@

$(VENV)/installed: pyproject.toml
	@echo "installing into $(VENV) ..."
	@$(PYTHON) -m venv $(VENV)
	@$(RUN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test,lint]'
	@touch $@

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
