"""Throughput beside infinity-emb on the same CLIP ViT-B/32 checkpoint (random weights), JPEG bytes in, embeddings out.

    python3 -m venv /tmp/infinity
    /tmp/infinity/bin/pip install torch==2.13.0 'infinity-emb[torch,server]' pillow aiohttp 'transformers<5' 'optimum<2'
    python -m benchmarks.peers --infinity /tmp/infinity/bin/infinity_emb [--images 128] [--seconds 60]

Both servers run in processes of their own, float32 or what each chooses, with as many requests in flight as keep them
busy; they are timed in turn. infinity-emb takes images as base64 data URIs over HTTP, 16 in a request; phs-server takes
bytes over a gRPC stream and also returns the PHS state. Neither resizes before sending.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from benchmarks.common import clip_b32, free_port, interleaved, photos, print_table, server
from phs_milvus.client.encoder import Encoder
from phs_milvus.client.requests import Outputs
from phs_milvus.contract.errors import PhsError

_REQUEST = 16


def add_tokenizer(directory: Path) -> None:
    """What infinity-emb needs beside the image half: a tokenizer of the right size, and the processor's class."""
    letters = [chr(code) for code in range(33, 127)]
    words = letters + [letter + "</w>" for letter in letters]
    words += [f"unused{index}" for index in range(49406 - len(words))] + ["<|startoftext|>", "<|endoftext|>"]
    (directory / "vocab.json").write_text(json.dumps({word: index for index, word in enumerate(words)}))
    (directory / "merges.txt").write_text("#version: 0.2\n")
    special = {"bos_token": words[-2], **dict.fromkeys(("eos_token", "unk_token", "pad_token"), words[-1])}
    tokenizer = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, **special}
    (directory / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    path = directory / "preprocessor_config.json"
    extra = {"image_processor_type": "CLIPImageProcessor", "do_convert_rgb": True, "do_center_crop": True}
    sizes = {"size": {"shortest_edge": 224}, "crop_size": {"height": 224, "width": 224}}
    path.write_text(json.dumps({**json.loads(path.read_text()), **extra, **sizes}))


@contextmanager
def infinity(program: str, model: Path) -> Iterator[str]:
    """An infinity-emb server; yields its URL once it answers."""
    port = free_port()
    command = [program, "v2", "--model-id", str(model), "--engine", "torch", "--host", "127.0.0.1"]
    command += ["--port", str(port), "--no-bettertransformer", "--batch-size", "16", "--served-model-name", "clip"]
    environment = {**os.environ, "DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1"}
    environment.pop("PYTHONPATH", None)
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        url = f"http://127.0.0.1:{port}"
        try:
            while True:
                if process.poll() is not None:
                    log.seek(0)
                    raise RuntimeError(f"infinity-emb ended: {log.read()[-2000:].decode()}")
                try:
                    urllib.request.urlopen(f"{url}/models", timeout=5).read()
                    break
                except (urllib.error.URLError, OSError):
                    time.sleep(0.5)
            yield url
        finally:
            process.terminate()
            process.wait(60)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--infinity", required=True, help="path of the infinity_emb program")
    parser.add_argument("--images", type=int, default=128, help="in one timed run")
    parser.add_argument("--precision", default="float32", help="of phs-server; infinity-emb on a CPU runs float32")
    parser.add_argument("--seconds", type=float, default=60)
    arguments = parser.parse_args()
    files = photos(32)
    files = [files[index % len(files)] for index in range(arguments.images)]
    uris = ["data:image/jpeg;base64," + base64.b64encode(data).decode() for data in files]
    bodies = [
        json.dumps({"model": "clip", "modality": "image", "input": uris[start : start + _REQUEST]}).encode()
        for start in range(0, len(uris), _REQUEST)
    ]
    with tempfile.TemporaryDirectory() as folder:
        model = clip_b32(Path(folder))
        add_tokenizer(model)
        with (
            infinity(arguments.infinity, model) as url,
            server(model, "--precision", arguments.precision) as (address, _),
            Encoder(address, timeout=300) as encoder,
            ThreadPoolExecutor(4) as pool,
        ):

            def post(body: bytes) -> int:
                request = urllib.request.Request(f"{url}/embeddings", body, {"Content-Type": "application/json"})
                with urllib.request.urlopen(request, timeout=300) as answer:
                    return len(json.loads(answer.read())["data"])

            def theirs() -> None:
                assert sum(pool.map(post, bodies)) == len(files)

            def ours() -> None:
                for result in encoder.encode_many(files, outputs=Outputs(state=True)):
                    if isinstance(result, PhsError):
                        raise result

            result = interleaved({"infinity": theirs, "phs": ours}, arguments.seconds)
    rates = [len(files) / result[name][0] for name in ("phs", "infinity")]
    header = ["precision of phs-server", "phs-server, images/s", "infinity-emb", "phs-server / infinity-emb"]
    print_table("Peers, CLIP ViT-B/32", header, [[arguments.precision, *rates, result["phs"][1]]])


if __name__ == "__main__":
    main()
