PYTHON ?= python3
VENV = .venv
RUN = $(VENV)/bin/python

.PHONY: demo test soak lint clean

# The stamp is newer than requirements.txt once everything in it is installed.
$(VENV)/installed: requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

demo: $(VENV)/installed
	rm -rf runs/demo
	$(RUN) o3f.py --dataset-id o2o/pointmaze/large-v0 --offline-steps 20000 --online-steps 5000 --run-name demo
	$(RUN) benchmark/plot.py runs/demo --out runs/demo/curve.png

test: $(VENV)/installed
	$(RUN) -m pytest -q -n 2

# Kill runs of every script at random moments, and compare what comes out: benchmark/results/soak.csv.
soak: $(VENV)/installed
	OMP_NUM_THREADS=1 $(RUN) tests/faults/soak.py

lint: $(VENV)/installed
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check --quiet .
	$(VENV)/bin/ruff check --select E501 *.py

clean:
	rm -rf $(VENV) runs .hypothesis
