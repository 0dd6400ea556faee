#!/usr/bin/env bash
# Runs a command beside a real Milvus standalone server (2.3.5, from PyPI), both in namespaces of their own: the server
# listens on every interface, and nothing of it stays behind. For example
#     tests/milvus_standalone.sh .venv/bin/pytest tests/milvus
# Where the machine cannot make namespaces, it says so and runs nothing.
set -euo pipefail

venv="${MILVUS_VENV:-/tmp/milvus-venv}"
if [[ -z "${PHS_IN_NAMESPACE:-}" ]]; then
    namespaces=(unshare --net --pid --fork --kill-child --mount-proc)
    if [[ $EUID -ne 0 ]]; then namespaces+=(--user --map-root-user); fi
    if ! "${namespaces[@]}" true 2>/dev/null; then
        echo "SKIPPED: this machine cannot make network namespaces; not run beside a real Milvus: $*"
        exit
    fi
    if [[ ! -x "$venv/bin/milvus-server" ]]; then
        python3 -m venv "$venv"
        "$venv/bin/pip" install --quiet milvus==2.3.5 setuptools
    fi
    export PHS_IN_NAMESPACE=1 PHS_TEST_MILVUS_URI=http://127.0.0.1:19530
    exec "${namespaces[@]}" -- "$0" "$@"
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
