PYTHON ?= python3
VENV = .venv
RUN = $(VENV)/bin/python

.PHONY: demo benchmark tables test soak lint clean

# The stamp is newer than requirements.txt once everything in it is installed.
$(VENV)/installed: requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

# What the sweeps need on top of that.
$(VENV)/benchmark: $(VENV)/installed requirements-benchmark.txt
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -r requirements-benchmark.txt
	touch $@

benchmark: $(VENV)/benchmark

# The tables and figures of the docs from benchmark/results/. (Not from there: the picture of
# docs/reading_iql.md. By hand: the tables of benchmark/gate_table.py in docs/jsrl_finetune.md.)
tables: $(VENV)/benchmark
	$(RUN) benchmark/tables.py

demo: $(VENV)/installed
	rm -rf runs/demo
	$(RUN) iql.py --dataset-id o2o/pointmaze/umaze-tiny-v0 --offline-steps 3000 --online-steps 12000 --eval-every 1000 --run-name demo
	$(RUN) benchmark/plot.py runs/demo --out runs/demo/curve.png

test: $(VENV)/benchmark
	$(RUN) -m pytest -q -n 2

# Kill runs of every script at random moments, and compare what comes out: benchmark/results/soak.csv.
soak: $(VENV)/installed
	OMP_NUM_THREADS=1 $(RUN) tests/faults/soak.py

lint: $(VENV)/installed
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check --quiet .

clean:
	rm -rf $(VENV) .hypothesis
