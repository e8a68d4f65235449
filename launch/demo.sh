#!/usr/bin/env bash
# Sets up on first use, then the main job on the embedded model and data. Arguments go to the job:
# `bash launch/demo.sh --workdir=/somewhere --config.seed=1`.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
case " $*" in *" --workdir"*) ;; *) set -- --workdir=demo "$@" ;; esac
exec .venv/bin/python -m launch.quantize --config=configs/demo.py "$@"
