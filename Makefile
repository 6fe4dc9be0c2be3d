# Every door of the house from a fresh clone. `make` alone lists the targets.

VENV   := .venv
PY     := $(VENV)/bin/python
# Not `python -m pytest`: that puts the repository root on the path, where platform/ has no business.
PYTEST := $(VENV)/bin/pytest
STAMP  := $(VENV)/.installed
# The pin lives in pyproject.toml alone. torch goes in first: packages that build from source look for it.
TORCH  := $(shell sed -n 's/^ *"\(torch==[^"]*\)".*/\1/p' pyproject.toml)
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3)
ENV    ?= kind
DEVICE ?= cpu
IMAGE  ?= latentomni

# Unset, a token file left by another cluster makes a local `ray job submit` answer 401.
export RAY_AUTH_MODE ?= disabled
export RAY_USAGE_STATS_ENABLED ?= 0

.DEFAULT_GOAL := help
.PHONY: help setup demo base evidence evidence-gpu evidence-large test test-slow check format bench reliability render image clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP)  ## make .venv and install the project into it (does nothing when up to date)

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' \
		|| { echo "Python 3.11 or 3.12 is needed; name one: make setup PYTHON=python3.11"; exit 1; }
	@test -x $(VENV)/bin/pip || $(PYTHON) -m venv $(VENV) \
		|| { echo "The venv module is missing: apt-get install python3-venv"; exit 1; }
	$(PY) -m pip install "$(TORCH)"
	$(PY) -m pip install -e '.[dev]'
	$(PY) -m pip check
	@$(PY) -c 'import torch; n = torch.cuda.device_count(); \
		print(f"torch {torch.__version__}: " + (f"GPU ({n} x {torch.cuda.get_device_name(0)})" if n else "CPU"))'
	@touch $@

demo: setup  ## the whole path on this machine: clips, training, evaluation, an answer over HTTP
	$(PY) jobs/demo.py

base: setup  ## make the small base checkpoint that the demo starts from
	$(PY) jobs/base.py --config jobs/configs/train/tiny_base.yaml

SMALL_FILM := film.train=1500 film.train_synchrony=500 film.test=96 film.test_synchrony=96 film.shifted=48

# The cells of film.yaml with one seed, fewer steps and fewer clips; an experiment and pages of its own.
evidence: setup  ## the small form of the comparison on the film, then its pages: outputs/evidence/pages
	$(PY) jobs/sweep.py --config jobs/configs/sweep/film.yaml experiment_name=film-small "seeds=[0]" trial.steps=200 \
		$(SMALL_FILM)
	$(PY) jobs/sweep.py --config jobs/configs/sweep/film.yaml experiment_name=film-small-same_shape "seeds=[0]" \
		"trial.families=[same_shape]" trial.steps=600 "only=[sft,text_cot,text_cot_times,markers,pause,cure,cure_no_mask]" \
		$(SMALL_FILM)
	$(PY) jobs/film_results.py --config jobs/configs/sweep/results.yaml experiment_name=film-small "seeds=[0]" \
		"further=[film-small-same_shape]" output_dir=outputs/evidence/pages

# Twenty times the weights from random, ten times the clips. 8e-4 did not get through the second stage, 4e-4 did.
LARGE_SIZES := tiny.hidden_size=640 tiny.num_layers=4 tiny.num_heads=10 tiny.num_kv_heads=5 \
	tiny.intermediate_size=1920 tiny.vision_size=256 tiny.audio_size=256 tiny.tower_layers=3 tiny.initializer_range=0.02
LARGE_BASE := $(LARGE_SIZES) \
	course.learning_rate=4.0e-4 course.clips_per_step=32 course.eval_every_clips=1600 last_stage=single num_loaders=12
LARGE_EXAM := \
	"exam.conditions=[own,no_audio,no_video,neither,latents_zero,latents_noise,latents_other,latents_gold,span_removed]"
LARGE_FILM := "scenes={families: [colour_n_after_tone]}" film.train=30000 film.test=192 trial.steps=625 \
	trial.clips_per_step=48 trial.learning_rate=5.0e-4 num_cpus=null gpus_per_cell=0.1 report_steps=313 $(LARGE_EXAM) \
	"only=[sft,text_cot,markers,pause,published,cure,cure_no_mask,cure_clip,cure_strict]"

outputs/base_26m/card.json: | setup
	$(PY) jobs/base.py --config jobs/configs/train/tiny_base.yaml $(LARGE_BASE) output_dir=outputs/base_26m

evidence-gpu: outputs/base_26m/card.json  ## the main rows and the cure with 26 million weights, on a GPU of 80 GB
	$(PY) jobs/sweep.py --config jobs/configs/sweep/film.yaml experiment_name=film-large \
		model_name_or_path=outputs/base_26m output_dir=outputs/evidence_gpu $(LARGE_FILM)
	$(PY) jobs/film_results.py --config jobs/configs/sweep/results.yaml experiment_name=film-large further=[] \
		tracking_uri=sqlite:///outputs/evidence_gpu/mlflow.db output_dir=outputs/evidence_gpu/pages

# The same size on short clips, for two cores.
SHORT_FILM := "scenes={num_shots: 4, families: [colour_n_after_tone]}" film.train=2000 trial.learning_rate=5.0e-4 \
	precision=bfloat16 $(LARGE_EXAM) \
	"only=[sft,text_cot,text_cot_times,text_cot_brief,markers,pause,published,cure,cure_no_mask,cure_strict]"

outputs/base_26m_short/card.json: | setup
	$(PY) jobs/base.py --config jobs/configs/train/short_base.yaml $(LARGE_SIZES) num_threads=2 \
		output_dir=outputs/base_26m_short

evidence-large: outputs/base_26m_short/card.json  ## latents with 26 million weights on clips of four shots, without a GPU
	$(PY) jobs/sweep.py --config jobs/configs/sweep/film.yaml experiment_name=film-26m_four_shots \
		model_name_or_path=outputs/base_26m_short output_dir=outputs/evidence_large $(SHORT_FILM)
	$(PY) jobs/film_results.py --config jobs/configs/sweep/results.yaml experiment_name=film-26m_four_shots further=[] \
		tracking_uri=sqlite:///outputs/evidence_large/mlflow.db output_dir=outputs/evidence_large/pages

test: setup  ## the tests that need neither a GPU nor patience
	$(PYTEST) tests

test-slow: setup  ## the tests that take more than half a minute each
	$(PYTEST) tests -m slow

check: setup  ## format, lint, types, import contracts, and the one file that must not exist
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/pyright
	$(VENV)/bin/lint-imports
	$(PYTEST) tests/test_house.py -k platform_package

format: setup  ## rewrite the sources as `make check` wants them
	$(VENV)/bin/ruff format .
	$(VENV)/bin/ruff check --fix .

bench: setup  ## every ratio in benchmarks/, or one: make bench NAME=unroll
	@set -e; for file in $(if $(NAME),benchmarks/$(NAME).py,$(sort $(wildcard benchmarks/*.py))); do \
		echo "$$file"; printed=$$($(PY) "$$file"); printf '%s\n' "$$printed" | grep '^{' | tail -n 1; \
	done

reliability: setup  ## try every fault and write docs/results/reliability.md (about 20 minutes)
	$(PY) tests/platform/train/reliability.py

render: setup  ## print the manifests of one environment: make render ENV=gpu
	@$(PY) infra/render.py $(ENV)

image: ## build the cluster image: make image DEVICE=gpu
	docker build -f infra/Dockerfile --build-arg DEVICE=$(DEVICE) \
		-t $(IMAGE):$(shell sed -n 's/^ *newTag: *//p' infra/overlays/$(if $(filter gpu,$(DEVICE)),gpu,kind)/kustomization.yaml | head -n 1) .

clean:  ## remove caches, build products and the demo's outputs (not .venv)
	rm -rf outputs/demo dist build .pytest_cache .ruff_cache .import_linter_cache
	find . -path ./$(VENV) -prune -o -type d -name __pycache__ -exec rm -rf {} +
