# Two commands do everything: `make demo` and `make test`. Both set up .venv and .comfyui first and reuse them afterwards.
# KOSMOS_G_VENV=/some/venv uses another virtual environment; PYTEST="-k encoder -x" passes options on to pytest.
# `make demo PORT=8500` leaves ComfyUI running there; SERVE=1 without a port takes the usual one.
# `make test` shares the tests between two processes, JOBS=4 between four; PYTEST="-n0 --pdb" keeps them in one.
# `make test COMFYUI=/some/ComfyUI` runs the nodes' tests on that ComfyUI instead, FRONTEND=1.49.6 with that front end.

PYTHON ?= python3
PORT ?=
# Who names a port wants to look at what is there.
SERVE ?= $(if $(PORT),1,0)
PYTEST ?=
JOBS ?= 2
MUTANTS ?=
COMFYUI ?=
FRONTEND ?=
VENV := $(or $(KOSMOS_G_VENV),.venv)
RUN := $(VENV)/bin/python

# Threads that spin while another process computes slow everything down on few cores.
export OMP_NUM_THREADS ?= 1
# A process that keeps no bytecode compiles torch and all the rest anew: 18 s of a training's start instead of 8.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test test-floors lock train-smoke gpu-check mutants lint install clean

demo:
	@$(PYTHON) dev/install.py demo
	@$(RUN) -m dev.demo $(if $(filter-out 0,$(SERVE)),--serve) $(if $(PORT),--port '$(PORT)')

test: install
	@folders="$$($(RUN) -m dev.overlay '$(abspath $(COMFYUI))' '$(FRONTEND)')" && \
	KOSMOS_G_COMFYUI='$(abspath $(COMFYUI))' PYTHONPATH="$$folders$${PYTHONPATH:+:$$PYTHONPATH}" \
	$(RUN) -m pytest --numprocesses logical --maxprocesses $(JOBS) --dist loadscope \
	$(if $(COMFYUI)$(FRONTEND),tests/comfyui) $(PYTEST)

# The encoder's tests on the oldest releases that pyproject.toml allows.
test-floors:
	@$(PYTHON) -m dev.floors

# Writes the versions of this environment into dev/locked.txt, which every other one then installs.
lock: install
	@$(RUN) -m dev.lock

# Trains all three stages at smoke size on data that it makes; ends with runs/smoke/instruct.safetensors.
train-smoke: export OMP_NUM_THREADS = 2
train-smoke: install
	@$(RUN) -m training.smoke

# Numbers, speed and memory on this machine's GPU, in at most eight minutes; installs nothing, takes the Python that runs:
# make gpu-check PYTHON=/some/python GPU="--only encode". Writes gpu-check.json, which training.plan --measured reads.
gpu-check:
	@$(PYTHON) -m dev.gpu_check $(GPU)

# Plants small mistakes and sees whether the tests notice: make mutants MUTANTS=core; without MUTANTS all, for hours.
mutants: install
	@$(RUN) -m dev.mutants $(MUTANTS)

lint: install
	@$(RUN) -m ruff check .
	@$(RUN) -m ruff format --check .
	@$(VENV)/bin/lint-imports

install:
	@$(PYTHON) dev/install.py test

clean:
	rm -rf .venv .venv-floors .comfyui .comfyui.*.unfinished .cache .pytest_cache .ruff_cache demo_output
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
