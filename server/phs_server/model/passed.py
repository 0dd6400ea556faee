"""Self-checks that were passed before, so that the same model is not run twice through transformers at each start.

What is kept is the model's own embedding of the sample. It stands for a check of the same weights, configuration and
preprocessing by the same code; the engine still compares with it what it serves (engine.warm_up).
"""

from __future__ import annotations

import base64
import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
import transformers

from phs_milvus.contract.types import Float32Array
from phs_server.model.cache import Cache

_TOLERANCE = 1e-3


class PassedCheck:
    """One model's self-check, passed or not.

    Args:
        fingerprint: of weights and preprocessing.
        config: the model's; all of it counts, also what the fingerprint leaves out.
        numbers: of its image processor.
    """

    def __init__(self, fingerprint: str, config: transformers.PretrainedConfig, numbers: dict[str, Any]) -> None:
        versions = [torch.__version__, transformers.__version__, PIL.__version__, np.__version__, _code()]
        settings = {name: value for name, value in config.to_dict().items() if name != "_name_or_path"}
        text = json.dumps([fingerprint, settings, numbers, versions], sort_keys=True, default=str)
        self._key = hashlib.sha256(text.encode()).hexdigest()
        self._cache = Cache("self-checks")

    def embedding(self) -> Float32Array | None:
        """float32 [E] of norm 1: the sample's, by the whole model; None where no check is known."""
        text = self._cache.get(self._key)
        try:
            embedding = np.frombuffer(base64.b64decode(text, validate=True), "<f4").astype(np.float32)
        except (TypeError, ValueError):
            return None
        return embedding if abs(np.linalg.norm(embedding) - 1) < _TOLERANCE else None

    def remember(self, embedding: Float32Array) -> None:
        """Keeps the sample's embedding float32 [E] of a check that was passed."""
        self._cache.put(self._key, base64.b64encode(embedding.astype("<f4").tobytes()).decode())


@cache
def _code() -> str:
    """A digest of the code that a check was about."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()
