# Every target makes its own virtual environment in .venv; PYTHON=python3.12 make … chooses another interpreter.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint format wheel clean

.venv/installed: setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: .venv/installed  ## enlarge scikit-image's photographs in every way, and train an agent on them
	$(BIN)/skipdiff demo -o demo.png

test: .venv/installed
	$(BIN)/python -m pytest

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: .venv/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

wheel: .venv/installed
	$(BIN)/python -m pip wheel --quiet --no-deps -w dist .

clean:
	rm -rf .venv dist build *.egg-info demo*.png
