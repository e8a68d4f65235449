#!/usr/bin/env bash
# Sets up on first use, then the main job on the embedded model and data. Arguments go to the job:
# `bash launch/demo.sh --workdir=/somewhere --config.seed=1`.
set -euo pipefail
here=$PWD  # which relative paths start from
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
cd "$here"
case " $*" in *" --workdir"*) ;; *) set -- --workdir=demo "$@" ;; esac
exec "$root/.venv/bin/python" -m launch.quantize --config="$root/configs/demo.py" "$@"
