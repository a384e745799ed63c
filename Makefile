# make demo | test | test-spark | test-spark-3.5 | test-spark-4.0 | test-duckdb-1.4 | lint | bench | fuzz | clean. Everything is installed into .venv from constraints.txt.

PYTHON ?= python3
VENV := .venv
OLD_DUCKDB := .venv-duckdb-1.4
OLD_SPARK := .venv-spark
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
DATA := $(or $(LLMSQL_DATA),../shared/data)

# GNU OpenMP's idle threads spin and would starve whatever else runs on the machine.
export GOMP_SPINCOUNT ?= 1000

.PHONY: help demo test test-spark-local test-others test-spark test-spark-statements test-spark-cluster test-spark-3.5 test-spark-4.0 test-duckdb-1.4 java lint format bench fuzz build clean

help:
	@echo "make demo   run SELECT llm(...) over generated reviews with the demo model (about two minutes)"
	@echo "make test   lint, type checks and all tests (needs Java 17 or newer for the Spark tests)"
	@echo "make test-spark   all Spark tests, those on a standalone cluster included"
	@echo "make test-spark-3.5, make test-spark-4.0   Spark tests once more, on these versions of PySpark (3.5: Python 3.11 or older)"
	@echo "make test-duckdb-1.4   the tests of the SQL side once more, on DuckDB 1.4"
	@echo "make lint   ruff and mypy only"
	@echo "make bench  the benchmarks; reads real tables from \$$LLMSQL_DATA where there are any"
	@echo "make fuzz   long random searches"
	@echo "make build  wheel and sdist into dist/"
	@echo "make clean  remove the virtual environment and everything that was built"

$(INSTALLED): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "make: $(PYTHON) not found: install Python 3.10 or newer, or set PYTHON=..."; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "make: Python 3.10 or newer is needed, $(PYTHON) is older"; exit 1; }
	@echo "make: creating $(VENV) and installing llmsql with its test tools (some minutes the first time)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt 'setuptools>=77' wheel
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --no-build-isolation --editable '.[spark,test]'
	@touch $@

demo: $(INSTALLED)
	@$(BIN)/python -m llmsql.demo

java:
	@command -v java >/dev/null || { echo "make: Java is missing: the Spark tests need a Java 17 or newer on the PATH (for example: apt-get install openjdk-17-jre-headless). All other tests run with: $(BIN)/python -m pytest -m 'not spark'"; exit 1; }

# Spark's tests wait for a JVM and most others run on one core: side by side they take two thirds of the time.
test: $(INSTALLED) java
	@echo "make: lint and the tests, those of Spark beside the others"
	@$(MAKE) --no-print-directory -j2 test-spark-local test-others

test-spark-local: $(INSTALLED) java
	@echo "make: Spark in local mode, and a few statements on a small cluster"
	@$(BIN)/python -m pytest -m 'spark and not fuzz and not spark_cluster'

test-others: $(INSTALLED) lint
	@echo "make: everything but Spark"
	@$(BIN)/python -m pytest -m 'not spark and not fuzz and not spark_cluster'

test-spark: $(INSTALLED) java
	@echo "make: all Spark tests, over Spark Connect and on a cluster of a master and two workers too (half an hour on two cores)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --no-build-isolation --editable '.[connect]'
	@$(MAKE) --no-print-directory -j2 test-spark-statements test-spark-cluster

test-spark-statements: $(INSTALLED) java
	@echo "make: Spark in local mode, all statements"
	@$(BIN)/python -m pytest -m 'spark or spark_cluster' --ignore-glob='*/test_spark_c*.py'

test-spark-cluster: $(INSTALLED) java
	@echo "make: Spark on clusters, and over Spark Connect"
	@$(BIN)/python -m pytest -m 'spark or spark_cluster' tests/test_spark_c*.py

lint: $(INSTALLED)
	@echo "make: ruff and mypy"
	@$(BIN)/ruff format --check --quiet . || { echo "make: not formatted; run 'make format'"; exit 1; }
	@$(BIN)/ruff check --quiet .
	@$(BIN)/mypy

format: $(INSTALLED)
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

bench: $(INSTALLED)
	@echo "make: benchmarks; tables go to benchmarks/out"
	@mkdir -p benchmarks/out
	@if ls $(DATA)/*.parquet >/dev/null 2>&1; then \
		$(BIN)/python benchmarks/reorder.py $(DATA)/*.parquet --output benchmarks/out; \
		$(BIN)/python benchmarks/query.py | tee benchmarks/out/query.md; \
	else echo "make: no tables in $(DATA): set LLMSQL_DATA; skipping the benchmarks that read them"; fi
	@$(BIN)/python benchmarks/planning.py | tee benchmarks/out/planning.md
	@$(BIN)/python benchmarks/engine.py | tee benchmarks/out/engine.md
	@$(BIN)/python benchmarks/constrained.py | tee benchmarks/out/constrained.md
	@$(BIN)/python benchmarks/gpu.py --dry-run

test-duckdb-1.4: $(INSTALLED)
	@echo "make: the tests of the SQL side on DuckDB 1.4"
	@test -x $(OLD_DUCKDB)/bin/python || $(PYTHON) -m venv $(OLD_DUCKDB)
	@$(OLD_DUCKDB)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps 'duckdb==1.4.*'
	@$(BIN)/python -c "import sysconfig; print('import site; site.addsitedir(%r)' % sysconfig.get_path('purelib'))" \
		> "$$($(OLD_DUCKDB)/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/other_packages.pth"
	@$(OLD_DUCKDB)/bin/python -m pytest -m 'not fuzz and not spark' tests/test_planner_*.py tests/test_session*.py \
		tests/test_function_options.py tests/test_inference.py tests/test_llm_agg.py tests/test_interrupts.py

# py4j as each PySpark wants it.
test-spark-3.5: PY4J := 0.10.9.7
test-spark-4.0: PY4J := 0.10.9.9
test-spark-3.5 test-spark-4.0: test-spark-%: $(INSTALLED) java
	@echo "make: the Spark tests on PySpark $*"
	@test -x $(OLD_SPARK)-$*/bin/python || $(PYTHON) -m venv $(OLD_SPARK)-$*
	@$(OLD_SPARK)-$*/bin/python -m pip install --quiet --disable-pip-version-check --no-deps 'pyspark==$*.*' 'py4j==$(PY4J)'
	@$(BIN)/python -c "import sysconfig; print('import site; site.addsitedir(%r)' % sysconfig.get_path('purelib'))" \
		> "$$($(OLD_SPARK)-$*/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/other_packages.pth"
	@$(OLD_SPARK)-$*/bin/python -m pytest tests/test_spark.py tests/test_spark_planning.py tests/test_spark_llm_agg.py \
		tests/test_spark_deployment.py tests/test_spark_connect.py

fuzz: $(INSTALLED)
	@$(BIN)/python -m pytest -m fuzz

build: $(INSTALLED)
	@$(BIN)/python -m build --no-isolation

clean:
	rm -rf $(VENV) $(OLD_DUCKDB) $(OLD_SPARK)-* build dist *.egg-info benchmarks/out .pytest_cache .mypy_cache .ruff_cache .hypothesis
