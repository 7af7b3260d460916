# Everything runs in .venv, which is made on first use; test-frameworks in one of its own.

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin
FRAMEWORKS := .venv-frameworks
# builds of torch without CUDA, which are a tenth of the size; empty: those of pip's own index
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
PIP := python -m pip install --quiet --disable-pip-version-check

# a checkout of https://github.com/Xilinx/XRT, for test-pyxrt
XRT ?= XRT

.PHONY: demo test test-frameworks test-pyxrt lint bench bench-encoders clean

demo: $(VENV)/installed
	@$(RUN)/npu-matmul demo

test: $(VENV)/installed
	@$(RUN)/python -m pytest

test-frameworks: $(FRAMEWORKS)/installed
	@$(FRAMEWORKS)/bin/python -m pytest tests/frameworks

test-pyxrt: $(VENV)/installed
	@$(RUN)/$(PIP) 'pybind11>=2.12'
	@$(RUN)/python -m pytest tests/test_device.py tests/test_xrt*.py --xrt-source $(XRT)

lint: $(VENV)/installed
	$(RUN)/ruff check .
	$(RUN)/ruff format --check .
	$(RUN)/mypy npu_matmul

bench: $(VENV)/plot-installed
	@mkdir -p bench-results
	@$(RUN)/npu-matmul bench --plot bench-results --json bench-results/cpu.json
	@$(RUN)/python bench/run.py --json bench-results/host.json

bench-encoders: $(FRAMEWORKS)/installed
	@mkdir -p bench-results
	@$(FRAMEWORKS)/bin/npu-matmul bench --encoders tiny,base --json bench-results/encoders.json

$(VENV)/plot-installed: $(VENV)/installed
	@$(RUN)/python -m pip install --quiet --disable-pip-version-check --editable '.[plot]'
	@touch $@

$(VENV)/installed: pyproject.toml
	@echo "installing into $(VENV) ..."
	@$(PYTHON) -m venv $(VENV)
	@$(RUN)/$(PIP) --editable '.[test,lint]'
	@touch $@

$(FRAMEWORKS)/installed: pyproject.toml
	@echo "installing torch, openai-whisper and transformers into $(FRAMEWORKS) ..."
	@$(PYTHON) -m venv $(FRAMEWORKS)
	@$(if $(TORCH_INDEX),$(FRAMEWORKS)/bin/$(PIP) --no-deps --retries 1 --index-url $(TORCH_INDEX) torch \
		|| echo "no torch from $(TORCH_INDEX); that of pip's own index is taken and may bring CUDA")
	@$(FRAMEWORKS)/bin/$(PIP) --editable '.[frameworks]'
	@touch $@

clean:
	rm -rf $(VENV) $(FRAMEWORKS) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
