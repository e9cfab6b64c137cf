#!/usr/bin/env bash
# Makes .venv in the checkout and installs Millrace into it, editable, with everything that the demo, the tests and the
# checks need, at the versions in constraints.txt. Called by the Makefile; writes nothing outside .venv but pip's cache.
#
#   PYTHON   the Python (3.11 or newer) to make .venv with; without it, python3, then the python3.x on PATH
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly VENV=.venv
readonly CPU_INDEX=https://download.pytorch.org/whl/cpu

fail() {
    echo "install: $*" >&2
    exit 1
}

is_supported() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

find_python() {
    local candidate version
    if [[ -n ${PYTHON:-} ]]; then
        version=$("$PYTHON" --version 2>/dev/null) || fail "PYTHON=$PYTHON does not run; name Python 3.11 or newer"
        is_supported "$PYTHON" || fail "PYTHON=$PYTHON is $version; Millrace needs Python 3.11 or newer"
        echo "$PYTHON"
        return
    fi
    for candidate in python3 python3.14 python3.13 python3.12 python3.11; do
        if is_supported "$candidate"; then
            echo "$candidate"
            return
        fi
    done
    fail "no Python 3.11 or newer on PATH; install one, or name it: make PYTHON=/path/to/python3"
}

# pip without its warnings: what it says then is an error.
install() {
    "$VENV/bin/python" -m pip install -qq --disable-pip-version-check --no-input "$@"
}

# Whether .venv works, and is of the Python that was asked for by name.
has_venv() {
    "$VENV/bin/python" -m pip --version >/dev/null 2>&1 &&
        [[ -z ${PYTHON:-} || $("$PYTHON" --version) == $("$VENV/bin/python" --version) ]]
}

make_venv() {
    local python=$1
    if has_venv; then
        return
    fi
    "$python" -c 'import ensurepip, venv' 2>/dev/null ||
        fail "$python cannot make virtual environments; on Debian and Ubuntu: apt-get install python3-venv"
    local options=()
    if has_gpu && "$python" -c 'import torch; assert torch.cuda.is_available()' 2>/dev/null; then
        options+=(--system-site-packages)
    fi
    "$python" -m venv --clear ${options[@]+"${options[@]}"} "$VENV"
}

has_gpu() {
    command -v nvidia-smi >/dev/null
}

has_torch() {
    "$VENV/bin/python" -c 'import torch' 2>/dev/null
}

# The CPU build has a version of its own ("+cpu"), so pip cannot take the CUDA build, with its gigabytes of libraries,
# for it. The build comes from wherever pip looks, else from PyTorch's own index. Its dependencies come with the rest.
install_cpu_torch() {
    local pin=$1
    install --no-deps "$pin" 2>/dev/null ||
        install --no-deps --index-url "$CPU_INDEX" "$pin" ||
        fail "no $pin for $("$VENV/bin/python" --version), neither where pip looks nor at $CPU_INDEX"
}

main() {
    local python torch constraints=constraints.txt
    python=$(find_python)
    echo "Installing into $VENV (the first time takes a few minutes) ..."
    make_venv "$python"
    torch=$(grep '^torch==' constraints.txt)
    if has_gpu; then
        constraints=$VENV/constraints.txt
        grep -vE '^(torch|triton)==' constraints.txt >"$constraints"
        has_torch || install "$torch"
    elif [[ $(uname -s) == Linux ]]; then
        has_torch || install_cpu_torch "$torch+cpu"
    fi
    install -c "$constraints" -e '.[dev]'
}

main "$@"
