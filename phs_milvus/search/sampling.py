"""Looks at a few rows of a collection that somebody else fills, before anything is ranked by their states."""

from __future__ import annotations

import numpy as np

from phs_milvus.client.encoder import Encoder
from phs_milvus.contract import state
from phs_milvus.contract.errors import CollectionError, ModelMismatch
from phs_milvus.milvus.collection import FocusedCollection

_ROWS = 16
# A state with every head kept gives the model's own embedding, whose cosine to the stored one is then 1, rounding
# aside; about 0 if one of them is of another model.
_AGREEMENT = 0.99


def check_states(collection: FocusedCollection, encoder: Encoder) -> None:
    """Raises ModelMismatch if most states of a sample do not give the embeddings that are stored beside them, or were
    made for others.

    One small read and one Rerank call. Of rows that hold no states yet nothing is known, and nothing said.

    Raises:
        CollectionError: there is not one state beside the collection: to make them was begun and refused, perhaps.
        EncoderError: the server could not answer.
    """
    embeddings, texts, changed = collection.sample_states(_ROWS)
    if collection.side is not None and not texts and not changed and not collection.side.count():
        raise CollectionError(
            f"collection {collection.name!r} was attached, but none of its rows has a state yet; run phs-milvus attach "
            f"{collection.name}, or backfill"
        )
    if changed > len(texts):
        raise ModelMismatch(
            f"collection {collection.name!r}: {changed} of {changed + len(texts)} rows looked at have another "
            f"embedding in field {collection.layout.embedding!r} than when their states were made; run phs-milvus "
            f"attach {collection.name} again, which makes new ones"
        )
    norms = np.linalg.norm(embeddings, axis=1)
    info = encoder.info
    # A search names the rows whose states are broken, where it meets them.
    whole = np.array([state.format_of(text, info.hidden_size) is not None for text in texts], bool)
    usable = np.flatnonzero(whole & np.isfinite(norms) & (norms > 0))
    if not len(usable):
        return
    states = state.unpack_stored([texts[row] for row in usable], info.hidden_size)
    every_head = np.ones((len(usable), info.heads), np.float32)
    cosines = encoder.rerank(embeddings[usable] / norms[usable, None], every_head, states).diagonal()
    differing = int((cosines < _AGREEMENT).sum())
    if 2 * differing > len(usable):
        raise ModelMismatch(
            f"collection {collection.name!r}: {differing} of {len(usable)} states looked at do not give the embedding "
            f"beside them in field {collection.layout.embedding!r} (median cosine {float(np.median(cosines)):.3f}, "
            f"wanted {_AGREEMENT} or more): the embeddings are not those of {info.model_id!r} with its preprocessing; "
            "serve the model that filled the collection, or store the embedding and the state of one Encode call"
        )
