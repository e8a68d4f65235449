#!/usr/bin/env bash
# Sets a bare machine up: Python 3.11 where it has none, the pinned requirements, jax for its chip, the bucket's client.
# Usage: bash launch/cloud/setup.sh cuda12|cuda13|tpu
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../python.sh"
if [ -z "${PYTHON:-}" ] && ! find_python > /dev/null; then
    python3 -m pip install --user --quiet uv
    python3 -m uv python install --quiet 3.11
    PYTHON=$(python3 -m uv python find 3.11)  # by itself: `export` would hide that it failed
    export PYTHON
fi
source "$(dirname "${BASH_SOURCE[0]}")/../setup.sh"
.venv/bin/python -m pip install --quiet --disable-pip-version-check ".[$1,cloud]"
