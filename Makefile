# make demo    a trained teacher and real audio into a store: inspected, drawn, verified, read back
# make student   the demo, then a student trained from its store, with labels only and with distillation
# make test    the tests
# make test-fast   the tests that take under five seconds and start no process
# make golden    the golden stores of tests/golden, all anew
# make wheel-demo   the demo, by a wheel that is built and installed outside of the repository
# make test-frameworks   teachers against the real frameworks, each in an environment of its own; FRAMEWORKS=...
# make docs    the documentation, in build/site; strict
# make benchmark-short   every benchmark in its short form
# make check   ruff, mypy, the arrows between rooms
# make torture kills, disk faults, rot and hostile input, thousands of cases in under ten minutes; one table
# make fuzz    coverage-guided fuzzing of everything that reads a store, for FUZZ_SECONDS (60)
# make digits FSDD=DIR   heads on recordings of digits, and the size and loss of every encoding on them
# Each makes its own virtual environment in .venv when none is active.

SHELL := /bin/bash
VENV := $(if $(VIRTUAL_ENV),$(VIRTUAL_ENV),.venv)
PY := $(VENV)/bin/python
DEMO := demo-store

.PHONY: demo student wheel-demo test test-fast golden marks docs test-frameworks torture fuzz check install benchmark benchmark-short digits clean help
help:
	@sed -n '1,13s/^# //p' Makefile

# torch is left alone where there is one: a user's own CUDA build stays theirs.
$(VENV)/.logitstore: setup.cfg pyproject.toml
	@test -x $(PY) || { echo "making a virtual environment in $(VENV)"; python3 -m venv $(VENV); }
	@$(PY) -c 'import torch' 2>/dev/null || { echo "installing torch"; $(PY) -m pip install -q torch==2.13.0; }
	@echo "installing logitstore and what its demo and tests need into $(VENV)"
	@$(PY) -m pip install -q -e '.[demo,test,check]'
	@touch $@

install: $(VENV)/.logitstore

demo: install
	PYTHON=$(PY) bash recipes/demo/run.sh $(DEMO)

student: demo
	$(PY) recipes/student/train.py $(DEMO) --manifest manifests/demo.jsonl --steps 200

# The wheel, built and installed outside of the repository, passes the demo.
wheel-demo: install
	$(PY) -m pytest tests/plugins/test_wheel.py

# In as many processes as there are cores; WORKERS=0 for one.
WORKERS ?= auto
test: install
	$(PY) -m pytest -n $(WORKERS) --dist loadfile

test-fast: install
	$(PY) -m pytest -n $(WORKERS) --dist loadfile -m "not slow and not subprocess and not framework"

# The golden stores, all of them anew; from format 1.0 on they are never made again.
golden: install
	$(PY) tests/golden/make.py

# Which tests are slow or start processes, measured by running all of them.
marks: install
	$(PY) -m pytest --measure tests/marks.txt

test-frameworks:
	VENVS="$${VENVS:-$(CURDIR)/.venv-frameworks}" bash tests/frameworks/run.sh

torture: install
	$(PY) -m tests.torture

# atheris wants a Python it has a build for; an environment of its own keeps it away from yours.
fuzz:
	@test -x .venv-fuzz/bin/python || python3 -m venv .venv-fuzz
	@.venv-fuzz/bin/python -c 'import atheris, numpy, google_crc32c, numcodecs' 2>/dev/null || \
	  .venv-fuzz/bin/python -m pip install -q 'atheris>=2.3' 'numpy>=1.26' 'google-crc32c>=1.5' 'numcodecs>=0.15'
	@mkdir -p tests/fuzz/found
	PYTHONPATH=. .venv-fuzz/bin/python -m tests.fuzz $(or $(FUZZ_SECONDS),60)

$(VENV)/.logitstore-docs: $(VENV)/.logitstore
	@echo "installing what builds the documentation into $(VENV)"
	@$(PY) -m pip install -q -e '.[docs]'
	@touch $@

# Strict: a broken link, an anchor that is not there and a public name without documentation fail. No network.
docs: $(VENV)/.logitstore-docs
	$(PY) -m pytest tests/docs/test_pages.py
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --site-dir build/site
	rm -rf build/demo-store
	$(PY) -m logitstore dump --teacher recipes/demo/teacher.py:load --manifest manifests/demo.jsonl \
	  --stream ctc=nucleus:1e-3 --stream rnnt=topk:16/banded:5+occupancy --transcripts all --out build/demo-store
	$(PY) -m logitstore report build/demo-store -o build/site/demo-report.html --manifest manifests/demo.jsonl --rate 1:2

check: install
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(PY) -m tests.rooms
	$(PY) -m tests.marks

benchmark: install
	$(PY) benchmarks/dump.py
	$(PY) benchmarks/joiner.py
	$(PY) benchmarks/size.py --short
	$(PY) benchmarks/tail.py
	$(PY) benchmarks/resample.py
	$(PY) benchmarks/capture.py
	$(PY) benchmarks/verify.py
	$(PY) benchmarks/scale.py
	$(PY) benchmarks/loading.py
	$(PY) benchmarks/report.py

# Every benchmark in a few seconds: it runs, and keeps those of its promises that do not depend on the clock.
benchmark-short: install
	@set -e; for file in benchmarks/*.py; do \
	  echo "-- $$file --short"; $(PY) $$file --short || { echo "$$file --short failed" >&2; exit 1; }; \
	done

digits: install
	@test -d "$(FSDD)/recordings" || { echo "make digits FSDD=DIR, a folder that holds recordings/"; exit 2; }
	$(PY) recipes/digits/train.py --fsdd $(FSDD) --out exp/digits
	$(PY) benchmarks/size.py --fsdd $(FSDD) --heads exp/digits

clean:
	rm -rf $(DEMO) $(DEMO).html $(DEMO)-webdataset build *.egg-info .pytest_cache .mypy_cache .ruff_cache
