#!/usr/bin/env bash
# Runs a command beside a real Milvus standalone server (2.3.5, from PyPI), both in namespaces of their own: the server
# listens on every interface, and nothing of it stays behind. Linux, root. For example
#     tests/milvus_standalone.sh python -m pytest tests/test_collection.py
set -euo pipefail

venv="${MILVUS_VENV:-/tmp/milvus-venv}"
if [[ ! -x "$venv/bin/milvus-server" ]]; then
    python3 -m venv "$venv"
    "$venv/bin/pip" install --quiet milvus==2.3.5 setuptools
fi
if [[ -z "${PHS_IN_NAMESPACE:-}" ]]; then
    export PHS_IN_NAMESPACE=1 PHS_TEST_MILVUS_URI=http://127.0.0.1:19530
    exec unshare --net --pid --fork --kill-child --mount-proc -- "$0" "$@"
fi

data="$(mktemp -d)"
trap 'kill -9 -- "-$server"; wait "$server" 2>/dev/null || true; rm -rf "$data"' EXIT
ip link set lo up
PYTHONUNBUFFERED=1 setsid "$venv/bin/milvus-server" --data "$data" >"$data/console.log" 2>&1 &
server=$!
for _ in $(seq 120); do
    if grep -q "Welcome" "$data/console.log"; then
        "$@"
        exit
    fi
    sleep 0.5
done
cat "$data/console.log" >&2
exit 1
