"""Rows and models of the tests in this folder, and which Milvus they run against."""

from __future__ import annotations

import os
from dataclasses import replace

import numpy as np
import pytest

from phs_milvus.contract.types import Limits, ModelInfo
from phs_milvus.milvus.rows import Row

URI = os.environ.get("PHS_TEST_MILVUS_URI")
lite_only = pytest.mark.skipif(URI is not None, reason="about Milvus Lite")

E, D = 16, 10
INFO = ModelInfo("tiny", "dinov2", "f" * 64, 4, D, E, 4, 4, 56, 2, "float32", Limits())
OTHER = replace(INFO, model_id="other", fingerprint="0" * 64, image_size=112)


def make_rows(ids: list, seed: int = 0, size: int = E, **metadata: object) -> list[Row]:
    rng = np.random.default_rng(seed)
    embeddings = rng.normal(size=(len(ids), size)).astype(np.float32)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    states = rng.normal(size=(len(ids), 2, D)).astype(np.float16)
    return [
        Row(key, embedding, state, f"{index:064x}", dict(metadata))
        for index, (key, embedding, state) in enumerate(zip(ids, embeddings, states, strict=True))
    ]
