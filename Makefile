# `make demo` and `make test` set everything up themselves; only Python 3.11 or newer and make are needed.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: setup demo test test-long test-clients test-report fuzz test-device test-oldest lint types bench docs figures clean

setup: .venv/installed

.venv/installed: pyproject.toml experiments/pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt \
		--editable '.[dev]' --editable experiments
	touch $@

.venv/bench-installed: .venv/installed
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[bench]'
	touch $@

# torchcfm needs torchdyn, which asks for torchvision and packages of notebooks without importing them; a torchvision
# for another build of torch would break torchmetrics
.venv/clients-installed: .venv/installed
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[clients]' --editable 'experiments[ray]'
	$(BIN)/pip install --quiet --constraint constraints.txt --no-deps \
		POT torchcde torchcfm torchdyn torchsde trampoline
	touch $@

.venv/report-installed: .venv/installed
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[report]'
	command -v chromium || { apt-get update --quiet && apt-get install --yes --quiet chromium; }
	touch $@

.venv/docs-installed: .venv/installed
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[docs]'
	touch $@

# glibc returns large tensors to the system after each use; keeping the memory saves the page faults of getting it again
demo: export MALLOC_MMAP_THRESHOLD_ = 4294967296
demo: export MALLOC_TRIM_THRESHOLD_ = 4294967296
demo: setup  ## trains, regularizes, selects and evaluates on real digits: about four minutes on two cores, with install
	$(BIN)/dise run mnist --preset sample

# Many tests start Python; without its bytecode each would compile the library again.
test test-long test-device test-clients test-report: export PYTHONDONTWRITEBYTECODE =

# Modules stay in their order: the last ones are short, so that no process waits for another. `make test-clients` runs the
# tests of clients, whose packages take seconds to import, in each process.
test: setup
	$(BIN)/pytest -n auto --dist loadscope --no-loadscope-reorder -m "not slow and not long" --ignore tests/clients

# only the modules that have such tests: importing the others would take as long as a page
test-long: setup  ## what CI runs beside `make test`: notebooks, long pages and tests of some seconds
	$(BIN)/pytest -n auto -m "long and not slow" $$(grep --recursive --files-with-matches mark.long tests --include='test_*.py')

test-clients: .venv/clients-installed  ## tests beside sbi, zuko, flow_matching, torchcfm, diffusers and Ray, and their pages
	$(BIN)/pytest -n auto -m "not slow" -k "clients or on_ray" tests/clients tests/test_docs.py tests/experiments/reproduce

test-report: .venv/report-installed  ## the HTML of `dise report` in headless Chromium, narrow and wide, light and dark
	$(BIN)/pytest -n 0 tests/report

fuzz: setup  ## the fuzzers with 10,000 inputs each instead of 25, and what they drew: hours
	$(BIN)/pytest -m fuzz -n 0 --hypothesis-profile long --hypothesis-show-statistics

# solving, and what users choose integrators with
DEVICE = second
ON_DEVICE = $(patsubst %, tests/integrate/%.py, \
		test_adjoint test_gradients test_resume test_solve output/test_events output/test_interpolation output/test_observers \
		problem/test_states runge_kutta/test_step stepping/test_checkpoint stepping/test_control stepping/test_loop \
		stepping/test_tolerance) \
	$(patsubst %, tests/select/%.py, \
		learning/test_committee learning/test_penalty learning/test_selector judging/test_front \
		make_dynamic/test_families make_dynamic/test_make model/test_adapt policies/test_cascade policies/test_dynamic \
		test_reads) \
	tests/torchdiffeq tests/regularize tests/test_nn.py

test-device: setup  ## tests with what they make on a device, as on a GPU: DEVICE=cuda where there is one
	PYTHONPATH=tools $(BIN)/pytest -n auto --dist loadscope -p on_device --device $(DEVICE) \
		-m "not slow and not long and not host" $(ON_DEVICE)

# the oldest torch that pyproject.toml allows; not part of CI, since it installs another torch
OLDEST := .venv-oldest/bin

.venv-oldest/installed: pyproject.toml experiments/pyproject.toml
	$(PYTHON) -m venv .venv-oldest
	$(OLDEST)/pip install --quiet torch==2.6.0 --editable '.[dev]' --editable experiments
	touch $@

test-oldest: .venv-oldest/installed  ## solving, selection and compiled rounds with torch 2.6
	$(OLDEST)/pytest -n auto --dist loadscope -m "not slow" --ignore tests/integrate/test_detest.py \
		--ignore tests/integrate/test_peers.py tests/integrate tests/select tests/test_nn.py tests/torchdiffeq

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python tools/structure.py

types: setup
	$(BIN)/mypy

bench: .venv/bench-installed
	$(BIN)/python benchmarks/solver.py
	$(BIN)/python benchmarks/ragged.py
	$(BIN)/python benchmarks/gradients.py
	$(BIN)/python benchmarks/parity.py results/mnist-cpu/odenet-none-seed0
	$(BIN)/python benchmarks/flow_training.py results/circles-cpu/flow-none-seed0
	$(BIN)/python benchmarks/union_grid.py --sample --batches 2

docs: export NO_MKDOCS_2_WARNING = 1
docs: .venv/docs-installed  ## builds the site, in site/
	$(BIN)/mkdocs build --strict

figures: setup  ## draws the documentation's figures again, with the front page's table, and runs the notebooks
	$(BIN)/python docs/figures
	$(BIN)/python tools/notebooks.py

clean:
	rm -rf .venv .venv-oldest site build src/*.egg-info experiments/src/*.egg-info
