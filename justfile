# `just` lists what there is; `just NAME` runs it.

python := ".venv/bin/python"

_list:
    @just --list --unsorted

# Make the environment, and have the checks run before each commit
setup:
    python3 -m venv .venv
    {{python}} -m pip install -q -e '.[dev]'
    {{python}} -m pre_commit install

# Run the tests in a few minutes (a file, -k WORDS and other options of pytest may follow)
test *options:
    {{python}} -m pytest -n 2 {{options}}

# Run the long tests: many more seeds, slow runs of processes
long *options:
    {{python}} -m pytest -n 2 -m long {{options}}

# Check style and types
lint:
    {{python}} -m ruff check .
    {{python}} -m ruff format --check .
    {{python}} -m mypy

# Compare locked with synthetic on this machine, a few minutes (other measurements: benchmarks/)
bench *options:
    .venv/bin/asyncdni compare launch/digits.toml --schedules locked,synthetic {{options}}

# Write docs/reference.md anew from the code
reference:
    {{python}} -c "from asyncdni.reference import document; print(document(), end='')" > docs/reference.md

# Build the documentation as a site, in site/
docs:
    {{python}} -m mkdocs build
