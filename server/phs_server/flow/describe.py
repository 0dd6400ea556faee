"""What GetModelInfo says of a loaded model."""

from __future__ import annotations

from phs_milvus.contract.errors import ModelError
from phs_milvus.contract.state import STATE_FORMATS
from phs_milvus.contract.types import ModelInfo
from phs_server.config import Settings
from phs_server.model.checkpoint import Checkpoint
from phs_server.model.engine import FocusEngine
from phs_server.model.head_selection import default_head_count


def describe(loaded: Checkpoint, engine: FocusEngine, settings: Settings) -> ModelInfo:
    """The model, its sizes and the server's limits.

    Raises:
        ModelError: the settings ask for more heads than there are.
    """
    heads = loaded.backbone.heads
    if settings.default_heads > heads:
        raise ModelError(f"default_heads is {settings.default_heads}, but model '{loaded.model_id}' has {heads} heads")
    return ModelInfo(
        model_id=loaded.model_id,
        model_type=loaded.model_type,
        fingerprint=loaded.fingerprint,
        heads=heads,
        hidden_size=loaded.backbone.hidden_size,
        embedding_size=loaded.backbone.readout.embedding_size,
        grid_height=loaded.preprocessing.grid,
        grid_width=loaded.preprocessing.grid,
        image_size=loaded.preprocessing.image_size,
        default_heads=settings.default_heads or default_head_count(heads),
        precision=engine.precision,
        limits=settings.limits,
        state_formats=STATE_FORMATS,
    )
