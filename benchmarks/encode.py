"""Encoding against transformers' own forward and against naive PHS, same weights, dtype and batch; MFU on a GPU.

    python -m benchmarks.encode [--size base] [--precision auto float32] [--batch 1 16] [--cpu-time]

Ours is `FocusEngine.encode`: uint8 pixels on the host to embeddings, states, scores and attention on the host.
The others get float pixels ready on the device. Naive PHS is what hooks on transformers' model can do: one eager pass
with output_attentions to score the heads, and a second one in which a hook on the last output projection scales them,
since that projection runs before the attention is returned. "eager pass" is its first pass alone.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor

from benchmarks.common import Clock, add_clock_flags, clock_name, dinov2, interleaved, print_table, set_clock
from phs_server.model import checkpoint
from phs_server.model.batch import PromptBatch
from phs_server.model.devices import resolve_devices
from phs_server.model.engine import FocusEngine
from phs_server.model.head_selection import score_heads, select_heads


def compare(directory: Path, device: str, precision: str, batch: int, seconds: float, clock: Clock) -> list[object]:
    """One row: images per second of each, and our ratios to the others."""
    engine = FocusEngine(checkpoint.load(str(directory)), device, precision)
    engine.warm_up(batch)
    dtype = getattr(torch, engine.precision)
    pixels = np.random.default_rng(0).integers(0, 256, (batch, 3, 224, 224), np.uint8)
    masks = np.random.default_rng(0).random((batch, 256), np.float32)
    counts = np.full(batch, 5)
    prompts = PromptBatch(masks, counts)
    ready = torch.randn(batch, 3, 224, 224).to(device, dtype)
    sdpa, eager = (_original(directory, kind, device, dtype) for kind in ("sdpa", "eager"))
    naive = NaivePhs(eager, torch.from_numpy(masks).to(device), torch.from_numpy(counts).to(device))
    result = interleaved(
        {
            "ours": lambda: engine.encode(pixels, prompts),
            "sdpa": lambda: _synced(sdpa, ready),
            "eager": lambda: _synced(eager, ready, output_attentions=True),
            "naive": lambda: naive(ready),
        },
        seconds,
        clock,
    )
    rates = [batch / result[name][0] for name in ("ours", "sdpa", "eager", "naive")]
    return [engine.precision, batch, *rates, *(1 / result[name][1] for name in ("sdpa", "eager", "naive"))]


class NaivePhs:
    """PHS by hooks: score the heads in one pass, scale them in the next."""

    def __init__(self, model: transformers.PreTrainedModel, masks: Tensor, counts: Tensor) -> None:
        self._model, self._masks, self._counts = model, masks, counts
        self._factors: Tensor | None = None
        attention = model.encoder.layer[-1].attention
        projection = attention.o_proj if hasattr(attention, "o_proj") else attention.output.dense  # before 5.20
        projection.register_forward_pre_hook(self._scale)

    def __call__(self, pixels: Tensor) -> None:
        attention = _synced(self._model, pixels, output_attentions=True).attentions[-1][:, :, 0, 1:]
        weights = select_heads(score_heads(attention, self._masks), self._counts).to(pixels.dtype)
        size = self._model.config.hidden_size // weights.shape[1]
        self._factors = weights.repeat_interleave(size, dim=1).unsqueeze(1)
        _synced(self._model, pixels)
        self._factors = None

    def _scale(self, module: torch.nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor] | None:
        return None if self._factors is None else (inputs[0] * self._factors,)


def _original(directory: Path, attention: str, device: str, dtype: torch.dtype) -> transformers.PreTrainedModel:
    model = transformers.AutoModel.from_pretrained(directory, attn_implementation=attention, dtype=dtype)
    return model.to(device).eval()


@torch.inference_mode()
def _synced(model: transformers.PreTrainedModel, pixels: Tensor, **kwargs: bool) -> Any:
    output = model(pixels, **kwargs)
    if pixels.is_cuda:
        torch.cuda.synchronize()
    return output


def utilisation(size: str, directory: Path, device: str, batch: int, ceiling: float) -> list[object]:
    """One row: images per second and the share of the matrix-product ceiling, FLOP/s, that the model itself uses."""
    engine = FocusEngine(checkpoint.load(str(directory)), device, "bfloat16")
    engine.warm_up(batch)
    arguments = engine.sample_batch(batch)
    seconds, _ = interleaved({"ours": lambda: engine.encode(*arguments)}, seconds=3)["ours"]
    config = engine.backbone.model.config
    tokens, width, layers = 257, config.hidden_size, config.num_hidden_layers
    # SwiGLU's three products of 8/3 D are as many as a plain MLP's two of 4 D.
    flops = 2 * layers * (12 * tokens * width**2 + 2 * tokens**2 * width) + 2 * 256 * 588 * width
    return [size, batch, batch / seconds, batch * flops / seconds / ceiling]


def matmul_ceiling(device: str) -> float:
    """FLOP/s of a large bfloat16 matrix product."""
    left, right = (torch.randn(8192, 8192, device=device, dtype=torch.bfloat16) for _ in range(2))

    def run() -> None:
        for _ in range(10):
            left @ right
        torch.cuda.synchronize()

    seconds, _ = interleaved({"matmul": run}, seconds=3)["matmul"]
    return 10 * 2 * 8192**3 / seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="base", choices=("small", "base", "large", "giant"))
    parser.add_argument("--precision", nargs="+", default=["auto", "float32"])
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 16])
    parser.add_argument("--device", default="auto")
    add_clock_flags(parser, seconds=20)
    arguments = parser.parse_args()
    device = resolve_devices(arguments.device)[0]
    clock = set_clock(arguments)
    with tempfile.TemporaryDirectory() as folder:
        model = dinov2(arguments.size, Path(folder) / arguments.size)
        rows = [
            compare(model, device, precision, batch, arguments.seconds, clock)
            for precision in arguments.precision
            for batch in arguments.batch
        ]
        header = ["precision", "batch", "ours, images/s", "SDPA", "eager pass", "naive PHS"]
        header += ["ours / SDPA", "ours / eager pass", "ours / naive PHS"]
        print_table(f"Encode, DINOv2 {arguments.size}/14 at 224 px, {clock_name(arguments)}", header, rows)
        if device.startswith("cuda"):
            ceiling = matmul_ceiling(device)
            rows = [
                utilisation(size, dinov2(size, Path(folder) / f"mfu-{size}"), device, batch, ceiling)
                for size in ("base", "large", "giant")
                for batch in (1, 16, 64, 256)
            ]
            title = f"Utilisation of the bfloat16 matrix-product ceiling, {ceiling / 1e12:.0f} TFLOP/s"
            print_table(title, ["model", "batch", "images/s", "share"], rows)


if __name__ == "__main__":
    main()
