#!/bin/sh
# Creates .venv and installs visgraft with one set of extras into it.
# Usage: scripts/setup_venv.sh EXTRA STAMP; PYTHON=... chooses the interpreter.
set -eu

extra=$1
stamp=$2
log=.venv/install-$extra.log

fail() {
    printf '\nvisgraft: %s\n' "$1" >&2
    exit 1
}

new_enough='import sys; sys.exit(sys.version_info < (3, 11))'

if [ ! -x .venv/bin/python ]; then
    python=${PYTHON:-}
    if [ -z "$python" ]; then
        for candidate in python3 python3.14 python3.13 python3.12 python3.11; do
            if command -v "$candidate" >/dev/null 2>&1 && "$candidate" -c "$new_enough" 2>/dev/null; then
                python=$candidate
                break
            fi
        done
    fi
    [ -n "$python" ] || fail "no Python 3.11 or newer was found; install one (Debian, Ubuntu: apt-get install python3 python3-venv) or name it: make PYTHON=/path/to/python3"
    "$python" -c "$new_enough" 2>/dev/null || fail "$python is older than Python 3.11; name a newer one: make PYTHON=/path/to/python3"
    "$python" -c 'import ensurepip, venv' 2>/dev/null || fail "$python has no venv module; install it (Debian, Ubuntu: apt-get install python3-venv) and run the same command again"
    echo "visgraft: creating .venv with $("$python" --version)"
    "$python" -m venv .venv || fail "could not create .venv; is this folder writable?"
fi

free_gib=$(df -Pk . | awk 'NR == 2 {print int($4 / 1048576)}')
if [ ! -d .venv/lib ] || ! .venv/bin/python -c 'import torch' 2>/dev/null; then
    echo "visgraft: installing PyTorch and the rest into .venv: 6 to 7 GB on disk, usually 2 to 5 minutes"
    [ "$free_gib" -ge 8 ] || fail "only $free_gib GiB are free here and the installation needs 8; free some space and run the same command again"
else
    echo "visgraft: bringing .venv up to date (extra: $extra)"
fi

started=$(date +%s)
.venv/bin/python -m pip install --disable-pip-version-check --progress-bar off -e ".[$extra]" >"$log" 2>&1 &
pip=$!
while kill -0 "$pip" 2>/dev/null; do
    sleep 1
    elapsed=$(($(date +%s) - started))
    [ $((elapsed % 20)) -ne 0 ] || [ "$elapsed" -eq 0 ] ||
        echo "  ... $elapsed s: $(grep -E '^ *(Downloading|Installing|Collecting|Building)' "$log" | tail -n 1 | cut -c 1-70)"
done
if ! wait "$pip"; then
    tail -n 15 "$log" >&2
    fail "pip could not install visgraft[$extra] (whole log: $log). If the lines above speak of a connection, check network, proxy or package index (pip config list); if of space, free some; then run the same command again"
fi
echo "visgraft: installed in $(($(date +%s) - started)) s"
touch "$stamp"
[ "$extra" != dev ] || touch .venv/.installed-train # dev contains train
