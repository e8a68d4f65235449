# Sourced by launch/demo.sh and tests/run.sh: makes .venv in the repository root from the hashed requirements.txt.
# Does nothing when .venv already matches; an interrupted set-up starts anew. PYTHON picks the interpreter.
unset CDPATH  # with it, cd prints where it went
case ${PYTHON:-} in /*) ;; */*) PYTHON=$PWD/$PYTHON ;; esac
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"
stamp=$(sha256sum requirements.txt | cut -d' ' -f1)
made() { [ "$(cat .venv/requirements.sha256 2>/dev/null)" = "$stamp" ] && .venv/bin/python -c "" 2>/dev/null; }
if ! made && command -v flock > /dev/null; then  # of two first starts at once, one makes it
    exec 9< requirements.txt
    flock 9 || echo "set-up: this file system has no locks; start one job at a time until .venv is made" >&2
fi
if ! made; then
    source launch/python.sh
    if ! python=$(find_python); then
        echo "set-up: found no Python 3.11 or newer with venv${PYTHON:+ at PYTHON=$PYTHON}; install one, or name it:" \
            "PYTHON=/path/to/python3.11" >&2
        exit 2
    fi
    echo "set-up: installing the pinned requirements into .venv with $("$python" --version)"
    rm -rf .venv
    "$python" -m venv .venv
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.txt
    echo "$stamp" > .venv/requirements.sha256
fi
exec 9<&-
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
