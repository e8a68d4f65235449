#!/usr/bin/env bash
# Sets up on first use, then lint and all tests. Arguments go to pytest: `bash tests/run.sh -k entropy`.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../launch/setup.sh"
.venv/bin/ruff check .
.venv/bin/ruff format --check --quiet .
exec .venv/bin/python -m pytest -q --numprocesses=auto --maxprocesses=4 --dist=worksteal "$@"
