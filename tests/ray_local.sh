#!/usr/bin/env bash
# Runs a command in an environment that has Ray, and all that this clone's own .venv has. For example
#     tests/ray_local.sh python -m pytest tests/scale
# Ray weighs 220 MB and is needed for one command, so it is in no other environment. What else it
# stands on is in .venv.
set -euo pipefail

repo="$(cd "$(dirname "$0")/.." && pwd)"
venv="${RAY_VENV:-/tmp/ray-venv}"
if [[ ! -e "$venv/ready" ]]; then
    rm -rf "$venv"
    "$repo/.venv/bin/python" -m venv "$venv"
    "$venv/bin/python" -m pip install --quiet --no-deps --constraint "$repo/constraints.txt" ray msgpack
    # Last on the path: what both have is this environment's.
    "$repo/.venv/bin/python" -c 'import sysconfig; print("import site; site.addsitedir(%r)" % sysconfig.get_path("purelib"))' \
        >"$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/zz_clone.pth"
    touch "$venv/ready"
fi
PATH="$venv/bin:$PATH" exec "$@"
