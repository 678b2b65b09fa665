# `make help` lists what there is. Everything installs into .venv/; everything that runs writes below build/.
SHELL := /bin/bash
.DEFAULT_GOAL := help

VENV := .venv
PY := $(VENV)/bin/python
PRESET ?= tiny
SEED ?= 0
TARGET ?= onnxruntime
CHECKPOINT ?= checkpoints/tutor
OUTPUT ?= build/engines/$(notdir $(CHECKPOINT))
ENGINES ?= build/engines/tutor
BUILD_FLAGS ?=
SERVE_FLAGS ?=
WEB_FLAGS ?=
DEMO_FLAGS ?=
SPEECH ?= build/data/fsdd
CROWD ?= build/data/speech_commands
FLEET_FLAGS ?=
WORKERS ?= 2
PYTEST_FLAGS ?=
PARITY_FLAGS ?=

.PHONY: help
help:  ## Show this list
	@echo "wan-streamer-triton: compile and serve native-streaming duplex Transformers"
	@echo
	@grep -hE '^[a-z][a-z-]*:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | sort | expand -t 16 | sed 's/^/  make /'
	@echo
	@echo "variables: PRESET, SEED (checkpoint); CHECKPOINT, OUTPUT, TARGET, BUILD_FLAGS (engine); ENGINES, SERVE_FLAGS (serve);"
	@echo "           SPEECH, CROWD (recordings of real people: demo, train, eval);"
	@echo "           WORKERS, PYTEST_FLAGS (test). Example: make engine TARGET=tensorrt-rtx BUILD_FLAGS='--compute-capability 8.9'"

.PHONY: setup
setup: $(VENV)/.ready  ## Create .venv/ with everything (a minute or two)

$(VENV)/.ready: pyproject.toml build/bootstrap.sh
	build/bootstrap.sh $(VENV)
	@touch $@

# ------------------------------------------------------------------------------------------------ build and serve
.PHONY: checkpoint
checkpoint: $(VENV)/.ready  ## Random weights of a PRESET -> build/checkpoints/PRESET
	$(PY) -m engine_builder init --preset $(PRESET) --seed $(SEED) build/checkpoints/$(PRESET)

.PHONY: engine
engine: $(VENV)/.ready  ## Build engines: CHECKPOINT -> OUTPUT for TARGET
	$(PY) -m engine_builder build $(CHECKPOINT) $(OUTPUT) --target $(TARGET) $(BUILD_FLAGS)
	$(PY) -m engine_builder verify $(OUTPUT)

$(ENGINES)/manifest.json: | $(VENV)/.ready
	$(MAKE) --no-print-directory engine OUTPUT=$(ENGINES)

.PHONY: serve
serve: $(ENGINES)/manifest.json  ## Start Triton with ENGINES on loopback (Ctrl-C drains and stops)
	$(PY) -m triton_models.launch --engines $(ENGINES) $(SERVE_FLAGS)

.PHONY: demo
demo: $(ENGINES)/manifest.json  ## A real conversation through a real server -> build/runs/demo/
	$(PY) -m engine_builder.training.demo_user --out build/media --speech $(SPEECH)
	$(PY) -m client.demo --engines $(ENGINES) --script build/media --out build/runs/demo $(DEMO_FLAGS)

.PHONY: fleet
fleet: $(ENGINES)/manifest.json  ## Three servers behind HAProxy, visitors, a kill, a drain, a new one: build/runs/fleet/
	build/system_packages.sh --optional haproxy prometheus
	$(PY) -m client.fleet --engines $(ENGINES) $(FLEET_FLAGS)

.PHONY: web
web: $(ENGINES)/manifest.json  ## Server, gateway and browser page on loopback: http://127.0.0.1:8080/
	$(PY) -m client.web --engines $(ENGINES) $(if $(wildcard $(CHECKPOINT)/personas),--personas $(CHECKPOINT)/personas) $(WEB_FLAGS)

# --------------------------------------------------------------------------------------------------------- containers
CONTAINER = TARGET=$(TARGET) CHECKPOINT=$(CHECKPOINT) ENGINES=$(ENGINES) BUILD_FLAGS='$(BUILD_FLAGS)' build/container.sh

.PHONY: image
image:  ## Container images of the server and the gateway for TARGET (needs Docker)
	$(CONTAINER) image

.PHONY: up
up:  ## Server and gateway in containers, ENGINES built if there are none: http://127.0.0.1:8080/ (needs Docker)
	$(CONTAINER) up

.PHONY: down
down:  ## Drain and stop the containers
	$(CONTAINER) down

.PHONY: chart
chart: $(VENV)/.ready  ## Lint and render the Helm chart, check it against Kubernetes' schemas: build/runs/chart/ (needs npm)
	build/deploy/chart.sh build/runs/chart

# -------------------------------------------------------------------------------------------- training, measurements
TRAIN_FLAGS ?=
EVAL_FLAGS ?=
PERF_FLAGS ?=
BENCH_FLAGS ?=

.PHONY: train
train: $(VENV)/.ready  ## Train the number tutor from scratch (CPU, one to three hours): build/runs/train/
	build/system_packages.sh --optional espeak-ng
	build/system_packages.sh --optional libtcmalloc-minimal4
	OMP_WAIT_POLICY=PASSIVE LD_PRELOAD="$$(ls /usr/lib/*/libtcmalloc_minimal.so.4 2>/dev/null | head -n 1)" \
		$(PY) -m engine_builder.training train --run build/runs/train --speech $(SPEECH) \
		$(if $(wildcard $(CROWD)),--crowd $(CROWD)) $(TRAIN_FLAGS)

.PHONY: eval
eval: $(ENGINES)/manifest.json  ## Judge ENGINES in closed loop on held-out voices: build/runs/eval/
	build/system_packages.sh --optional espeak-ng
	$(PY) -m tests.eval --engines $(ENGINES) --out build/runs/eval --speech $(SPEECH) --crowd $(CROWD) $(EVAL_FLAGS)

# perf_analyzer comes with this tritonclient only, which needs other versions of everything: an environment of its own.
.venv-perf/bin/perf_analyzer: | $(VENV)/.ready
	$(PY) -m venv .venv-perf
	.venv-perf/bin/pip install --quiet --disable-pip-version-check --no-deps tritonclient==2.51.0

.PHONY: perf
perf: $(ENGINES)/manifest.json .venv-perf/bin/perf_analyzer  ## perf_analyzer and the open-loop driver, 1, 2, 4 streams, side by side: build/runs/perf/
	$(PY) -m client.perf --engines $(ENGINES) $(PERF_FLAGS)

.PHONY: bench
bench: $(ENGINES)/manifest.json  ## Scheduler, policies, overhead, an hour: build/runs/bench/summary.json (half an hour)
	$(PY) -m triton_models.measure --engines $(ENGINES)
	$(PY) tests/bench/bench_scheduler.py
	$(PY) tests/bench/bench_think.py --checkpoint $(CHECKPOINT) --engines $(ENGINES)
	$(PY) tests/bench/bench_guard.py
	$(PY) tests/bench/bench_canceller.py
	$(PY) tests/bench/bench_policies.py --engines $(ENGINES)
	$(PY) tests/bench/bench_overhead.py --engines $(ENGINES)
	$(PY) tests/bench/bench_hour.py --engines $(ENGINES)

.PHONY: bench-gpu
bench-gpu: $(VENV)/.ready  ## On an NVIDIA GPU: ceilings, step times, sessions on time -> tests/bench/results/
	$(PY) tests/bench/gpu/bench_gpu.py $(BENCH_FLAGS)

# A bare GPU machine has Python 3.12 with these, and nothing of ours: build/gpu_venv.sh makes its twin.
GPU_KIT ?= build/gpu-kit
GPU_VENV ?= $(HOME)/.cache/wan-streamer-triton/gpu-venv
GPU_RESULTS ?= $(GPU_KIT)/results
KIT := tests/bench/gpu/kit

$(GPU_VENV)/.ready: build/gpu_venv.sh
	build/gpu_venv.sh $(GPU_VENV)
	@touch $@

.PHONY: gpu-kit
gpu-kit: $(VENV)/.ready $(GPU_VENV)/.ready  ## Pack what a bare GPU machine needs: build/gpu-kit/; there: bash gpu_day.sh (9 minutes)
	$(PY) $(KIT)/pack.py $(GPU_KIT) --python $(GPU_VENV)/bin/python

.PHONY: gpu-kit-smoke
gpu-kit-smoke: $(VENV)/.ready $(GPU_VENV)/.ready  ## The whole kit, tiny and on this CPU, with that machine's Python and versions
	$(PY) $(KIT)/pack.py build/runs/gpu-kit-smoke
	OUT=build/runs/gpu-kit-smoke/results PYTHON=$(GPU_VENV)/bin/python bash build/runs/gpu-kit-smoke/gpu_day.sh --smoke

.PHONY: gpu-report
gpu-report: $(VENV)/.ready  ## What gpu_day.sh brought (GPU_RESULTS): CSV and figures in tests/bench/results/, rows for the README
	$(PY) $(KIT)/report.py $(GPU_RESULTS)

# --------------------------------------------------------------------------------------------------------- bad days
CHAOS_FLAGS ?=
SOAK_FLAGS ?=

.PHONY: chaos
chaos: $(ENGINES)/manifest.json  ## Attacks and faults beside one healthy session: build/runs/chaos/table.md (15 minutes)
	$(PY) -m tests.chaos --engines $(ENGINES) $(CHAOS_FLAGS)

.PHONY: fuzz
fuzz: $(VENV)/.ready  ## 200,000 seeded messages at the doors of stage and loop, 50,000 events at the gateway's
	FUZZ_SCALE=100 $(PY) -m pytest tests/fuzz tests/client/web/test_web_fuzz.py --timeout 7200 $(PYTEST_FLAGS)

.PHONY: soak
soak: $(ENGINES)/manifest.json  ## People come and go for an hour (SOAK_FLAGS='--minutes 10'): build/runs/soak/figures.json
	$(PY) -m tests.soak --engines $(ENGINES) $(SOAK_FLAGS)

# ----------------------------------------------------------------------------------------------------------- checks
.PHONY: lint
lint: $(VENV)/.ready  ## ruff (style), pyright (types), import-linter (rooms), hadolint and the Compose schema (containers)
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/pyright
	$(VENV)/bin/lint-imports
	$(VENV)/bin/hadolint build/Dockerfile tests/build/standin.Dockerfile
	$(VENV)/bin/check-jsonschema --builtin-schema vendor.compose-spec build/compose.yaml build/compose.gpu.yaml

.PHONY: test
test: lint .venv-perf/bin/perf_analyzer  ## Lint, types and the whole test suite, with a real tritonserver, browser and Prometheus
	build/system_packages.sh --optional chromium prometheus espeak-ng openssl haproxy
	command -v npm >/dev/null || build/system_packages.sh --optional npm
	OMP_WAIT_POLICY=PASSIVE $(PY) -m pytest -m "not gpu and not slow" -n $(WORKERS) $(PYTEST_FLAGS)

# pocket-tts asks for numpy 2 and a web server; the parts that it is asked for here do without.
ORACLES := pocket-tts==4.0.1 scipy==1.17.1 sentencepiece==0.2.3

build/oracles/.ready: Makefile $(VENV)/.ready
	$(VENV)/bin/pip install -q --no-deps --upgrade --target build/oracles $(ORACLES)
	@touch $@

.PHONY: codec-parity
codec-parity: build/oracles/.ready  ## Codecs at full size against those who publish them (PARITY_FLAGS='--families mimi-vae')
	PYTHONPATH=build/oracles $(PY) tests/engine_builder/codecs/parity.py $(PARITY_FLAGS)

.PHONY: clean
clean:  ## Remove outputs (engines, runs, checkpoints made here); keeps .venv/
	rm -rf build/engines build/runs build/checkpoints build/cache build/media
