#!/usr/bin/env bash
# Builds the server's and the plugin's image for real, runs them, and asks the server in its container from outside. It
# needs no docker daemon and no image registry: the base image is a Debian made by debootstrap.
#
#   sudo docker/check.sh                 server-cpu: ten minutes or more, and 6 GB in /tmp meanwhile (40 without overlayfs)
#   sudo docker/check.sh server-cuda     the same for the image with CUDA, which then runs on the CPU
#
# It needs root, buildah, debootstrap, this repository's .venv (`make .venv/.dev`), and packages: Debian's, and pip's by
# the settings of this machine. TORCH_INDEX, where set, is the build argument. Nothing stays behind, even if it is
# killed: mounts and processes end with its namespaces, and a watcher removes its folder. Only the environment of the
# Milvus is kept, by tests/milvus_standalone.sh.
set -euo pipefail
cd "$(dirname "$0")/.."
target="${1:-server-cpu}"

if [[ -z "${PHS_CHECK_FOLDER:-}" ]]; then
    for need in buildah debootstrap unshare .venv/bin/python; do
        if ! command -v "$need" >/dev/null; then echo "docker/check.sh needs $need" >&2; exit 2; fi
    done
    if [[ $EUID -ne 0 ]]; then echo "docker/check.sh needs root: run it by sudo" >&2; exit 2; fi
    PHS_CHECK_FOLDER="$(mktemp -d /tmp/phs-check.XXXXXX)"
    export PHS_CHECK_FOLDER
    # All that is mounted is mounted inside the namespaces, which end with this process: what is removed is copies.
    # shellcheck disable=SC2016
    setsid sh -c 'tail --pid="$0" -f /dev/null; sleep 1; rm -rf "$1"' $$ "$PHS_CHECK_FOLDER" </dev/null >/dev/null 2>&1 &
    setpriv --pdeathsig KILL unshare --mount --pid --fork --kill-child --mount-proc -- "$0" "$@" &
    trap 'exit 130' INT
    trap 'exit 143' TERM HUP
    wait $!
    exit
fi

work="$PHS_CHECK_FOLDER"
export TMPDIR="$work/tmp"
say() { printf '\n== %s\n' "$*"; }
fail() { printf 'FAILED: %s\n' "$*" >&2; exit 1; }
buildah() { command buildah --root "$work/storage" --runroot "$work/run" --storage-driver "$(<"$work/driver")" "$@"; }

make_base() {
    packages=python3,python3-venv,ca-certificates
    debootstrap --variant=minbase --include="$packages" bookworm "$work/debian" >"$work/log" 2>&1 ||
        { tail "$work/log" >&2; fail "debootstrap"; }
    tar -C "$work/debian" -cf "$work/rootfs.tar" .
    printf 'FROM scratch\nADD rootfs.tar /\n' | buildah bud --quiet --tag localhost/base -f - "$work" >/dev/null
    rm -rf "$work/debian" "$work/rootfs.tar"
}

# What pip is told on this machine it is told in the build, where the local files and folders are that this names.
pip_settings() {
    .venv/bin/python - "$work/pip.conf" <<'PYTHON'
import re, subprocess, sys
from pathlib import Path

listing = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True)
settings = dict(re.findall(r"^[\w:]*\.([\w-]+)='(.*)'$", listing.stdout.replace("\\n", " "), re.MULTILINE))
Path(sys.argv[1]).write_text("[global]\n" + "".join(f"{name} = {value}\n" for name, value in settings.items()))
paths = [Path(word) for word in " ".join(settings.values()).replace("file://", "").split() if word.startswith("/")]
# An index lies beside its files.
print(*{path.parent if path.name == "simple" else path for path in paths if path.exists()}, sep="\n")
PYTHON
}

build() { # TARGET TAG [MODEL]
    SECONDS=0
    buildah bud --isolation chroot --layers --pull-never --format docker "${mounts[@]}" --file docker/Dockerfile \
        --build-arg BASE=localhost/base --build-arg TORCH_INDEX="${TORCH_INDEX-}" --build-arg "MODEL=${3:-}" \
        --target "$1" --tag "localhost/$2" . >"$work/log" 2>&1 || { tail -40 "$work/log" >&2; fail "building $1"; }
    say "built $2 in $SECONDS s"
}

if [[ -z "${PHS_TEST_MILVUS_URI:-}" ]]; then
    mkdir "$TMPDIR" "$work/lower" "$work/upper" "$work/scratch" "$work/merged"
    # vfs works anywhere, and copies every file for every layer.
    options="lowerdir=$work/lower,upperdir=$work/upper,workdir=$work/scratch"
    if ! mount -t overlay overlay -o "$options" "$work/merged" 2>/dev/null; then driver=vfs; fi
    echo "${driver:-overlay}" >"$work/driver"
    say "a base image of Debian bookworm and its Python; storage: $(<"$work/driver")"
    make_base
    pip_settings >"$work/mounts"
    mounts=(--volume "$work/pip.conf:/etc/pip.conf:ro")
    while read -r path; do mounts+=(--volume "$path:$path:ro"); done <"$work/mounts"
    build "$target" server
    build "$target" server-baked assets/demo_model
    build plugin plugin
    # The rest beside a real Milvus, in a network of its own.
    tests/milvus_standalone.sh "$0" "$target"
    exit
fi

inspect() { # IMAGE EXPRESSION: words out of an image's configuration
    buildah inspect --type image "localhost/$1" | .venv/bin/python -c "
import json, sys
config = json.load(sys.stdin)['Docker']['config']
print(*$2, sep='\n')"
}
within() { buildah run --isolation chroot --cap-drop all "$@"; }

mapfile -t entrypoint < <(inspect server "config['Entrypoint']")
mapfile -t healthcheck < <(inspect server "config['Healthcheck']['Test'][1:]")
[[ "$(inspect server "[config['User']]")" == 10001 ]] || fail "the image's user is not 10001"

say "an image without a model says so"
server="$(buildah from --pull-never localhost/server)"
if within "$server" -- "${entrypoint[@]}" 2>"$work/log"; then fail "it started"; fi
grep "^phs-server: .*/model" "$work/log" || fail "it does not"

start() { # CONTAINER [OPTIONS]: starts its server and waits until it is healthy
    SECONDS=0
    if within "$1" -- "${healthcheck[@]}" >/dev/null 2>&1; then fail "it is healthy before it runs"; fi
    within "${@:2}" "$1" -- "${entrypoint[@]}" >"$work/log" 2>&1 &
    running=$!
    until within "$1" -- "${healthcheck[@]}" 2>/dev/null; do
        if ! kill -0 "$running" || ((SECONDS > 300)); then cat "$work/log" >&2; fail "it is not healthy"; fi
        sleep 0.5
    done
    say "healthy after $SECONDS s"
    pid="$(pgrep -o -u 10001 -f 'python3 .*/phs-server')" || fail "it does not run as user 10001"
    echo "its processes have no capability: $(grep CapEff "/proc/$pid/status")"
}
stop() {
    kill -TERM "$pid"
    wait "$running" || { cat "$work/log" >&2; fail "SIGTERM did not end it well"; }
}

say "the server with a model mounted at /model"
touch "$work/before"
start "$server" --volume "$PWD/assets/demo_model:/model:ro"
.venv/bin/python - assets/demo_scenes/scene_0000.webp <<'PYTHON'
import sys

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from phs_milvus import Box, Encoder, Outputs

with grpc.insecure_channel("127.0.0.1:50051") as channel:
    answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service="readiness"), timeout=5)
print("health, from outside:", health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))
with Encoder("127.0.0.1:50051") as encoder:
    encoding = encoder.encode(sys.argv[1], Box(20, 20, 120, 120), outputs=Outputs(state=True))
    print("Encode, from outside:", encoder.info.model_id, encoding.embedding.shape, encoding.state.shape)
    assert encoding.embedding.shape == (encoder.info.embedding_size,) and abs((encoding.embedding**2).sum() - 1) < 1e-3
PYTHON

say "the plugin: ingest into a real Milvus, and a search"
mkdir "$work/photos"
cp assets/demo_scenes/scene_000?.webp "$work/photos"
chmod 755 "$work" "$work/photos"
plugin="$(buildah from --pull-never localhost/plugin)"
plugin() {
    within --volume "$work/photos:/photos:ro" --env PHS_ENCODER=127.0.0.1:50051 --env PHS_MILVUS="$PHS_TEST_MILVUS_URI" \
        "$plugin" -- phs-milvus "$@"
}
plugin ingest /photos
plugin search /photos/scene_0000.webp --box 20,20,120,120 --limit 3

say "the rerank endpoint, as compose.yaml starts it"
mapfile -t words < <(.venv/bin/python -c "
import yaml
print(*yaml.safe_load(open('docker/compose.yaml'))['services']['rerank']['command'], sep='\n')")
plugin "${words[@]}" >"$work/log" 2>&1 &
for _ in $(seq 60); do if grep -q 8766 "$work/log"; then break; fi; sleep 0.5; done
.venv/bin/python - assets/demo_scenes/scene_000[0-2].webp <<'PYTHON' || { cat "$work/log" >&2; fail "no answer"; }
import json
import sys
import urllib.request

from phs_milvus import Box, Encoder, Outputs, Reranker
from phs_milvus.contract import state
from phs_milvus.search.packed_query import pack_query
from phs_milvus.search.parts import parts_of

with Encoder("127.0.0.1:50051") as encoder:
    texts = [state.pack(encoder.encode(path, outputs=Outputs(state=True)).state) for path in sys.argv[1:]]
    comparison = parts_of([Reranker(encoder).query(sys.argv[1], Box(20, 20, 120, 120))], []).comparison("query_db")
    query = pack_query(comparison, encoder.info.fingerprint)
body = json.dumps({"query": query, "texts": texts}).encode()
headers = {"Content-Type": "application/json", "Host": "rerank:8766"}
with urllib.request.urlopen(urllib.request.Request("http://127.0.0.1:8766/rerank", body, headers), timeout=20) as answer:
    ranking = json.load(answer)
print(ranking)
assert ranking[0]["index"] == 0 and len(ranking) == len(texts)
PYTHON

say "the server remembers kernels in /cache, and nothing else is written but in /tmp: the root may be read-only"
find "$(buildah mount "$server")/cache" -type f -newer "$work/before" -user 10001 | grep . || fail "no file in /cache"
for container in "$server" "$plugin"; do
    root="$(buildah mount "$container")"
    may=(-path "$root/cache" -o -path "$root/tmp")
    written="$(find "$root" -xdev \( "${may[@]}" \) -prune -o -newer "$work/before" -user 10001 -print)"
    [[ -z "$written" ]] || fail "$written"
done
stop

say "the server with a model baked in"
start "$(buildah from --pull-never localhost/server-baked)"
stop
say "all is well"
buildah images | grep -v '^<none>'
