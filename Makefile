# Every target makes its own virtual environment in .venv; PYTHON=python3.12 make … chooses another interpreter.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test slow lint docs films figures screenshot format wheel sdist clean

# Torch is installed by pip, which takes the wheel for CPUs where the machine offers it; the rest by uv from the same
# index, in a fraction of pip's time, or by pip where uv cannot be had.
PIP := $(BIN)/python -m pip --disable-pip-version-check
INDEX := $${PIP_INDEX_URL-$$($(PIP) config get global.index-url 2>/dev/null)}
UV := UV_INDEX_URL="$(INDEX)" $(BIN)/python -m uv
OPTIONS := install --quiet -c constraints.txt
install = $(UV) pip $(OPTIONS) --python $(BIN)/python -e '$(1)' || $(PIP) $(OPTIONS) -e '$(1)'
ALL := .[dev,docs]

.venv/runs: setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(PIP) $(OPTIONS) torch
	-$(PIP) install --quiet uv
	$(call install,.)
	touch $@

.venv/installed: .venv/runs
	$(call install,$(ALL))
	touch $@

demo: .venv/runs  ## enlarge scikit-image's photographs in every way, and train an agent on them
	$(BIN)/skipdiff demo -o demo.png

test: .venv/installed
	$(BIN)/python -m pytest -n 2 --dist worksteal

slow: .venv/installed  ## the tests that take a minute or start other programs, which `make test` leaves out
	$(BIN)/python -m pytest -n 2 --dist worksteal -m slow

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: .venv/installed  ## the site of the documentation, in site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet --strict

# What pages include, as commands print it. Each file is made once; `make -B films figures` makes all of them anew.
GENERATED := docs/generated
FILMS := SkipDiff-v0 SkipDiffFaces-v0
# The agents that play, and the picture.
AGENT_SkipDiff-v0 ?= natural-x4/agent-paper
AGENT_SkipDiffFaces-v0 ?= faces-x8/agent-paper
FILM_OPTIONS ?= --image 1
FIGURES := env_throughput forward speed backends fuzz
VARIANTS := SkipDiff-v0 SkipDiffFaces-v0 SkipDiffJump-v0 SkipDiffJump128-v0 SkipDiffPhoto-v0 SkipDiffTable-v0 \
            SkipDiffBanditTable-v0
OPTIONS_backends := --sides 16,64,256 --cpu-time
OPTIONS_env_throughput := --threads 1 --cpu-time --num-envs 8 --policies random --variants $(VARIANTS)

films: $(FILMS:%=$(GENERATED)/%.webp)  ## a film of an episode for each environment
figures: $(FIGURES:%=$(GENERATED)/%.md)  ## the tables of the benchmarks that need no pictures

$(FILMS:%=$(GENERATED)/%.webp): $(GENERATED)/%.webp: .venv/installed
	mkdir -p $(GENERATED)
	$(BIN)/skipdiff enjoy --env $* --agent $(AGENT_$*) $(FILM_OPTIONS) -o $@

$(GENERATED)/%.md: .venv/installed
	mkdir -p $(GENERATED)
	printf '`%s` printed:\n\n' '$(strip python -m benchmarks.$* $(OPTIONS_$*))' > $@.tmp
	$(BIN)/python -m benchmarks.$* $(OPTIONS_$*) >> $@.tmp
	mv $@.tmp $@

screenshot: .venv/installed  ## how the page of `skipdiff web` looks; needs chromium and chromium-driver
	$(BIN)/python -m benchmarks.screenshot -o $(GENERATED)/web.webp

format: .venv/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

wheel: .venv/installed
	$(BIN)/python -m pip wheel --quiet --no-deps -w dist .

sdist: .venv/installed
	$(BIN)/python -c 'from setuptools.build_meta import build_sdist; print(build_sdist("dist"))'

clean:
	rm -rf .venv dist build site *.egg-info demo*.png
