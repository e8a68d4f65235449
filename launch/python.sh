# Sourced by the set-up scripts. `find_python` prints the Python to use, 3.11 or newer and able to make environments:
# $PYTHON, or else the first of some names; it fails where there is none.
find_python() {
    local candidate candidates=(python3.11 python3.12 python3)
    if [ -n "${PYTHON:-}" ]; then candidates=("$PYTHON"); fi
    for candidate in "${candidates[@]}"; do
        if "$candidate" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2> /dev/null; then
            echo "$candidate"
            return
        fi
    done
    return 1
}
