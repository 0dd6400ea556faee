"""ModelInfo of the contract <-> our ModelInfo."""

from __future__ import annotations

from typing import Any

from phs_milvus.contract._pb import encoder_pb2 as pb
from phs_milvus.contract.types import Limits, ModelInfo, StateFormat

# The smallest limit on a message's bytes that a server may have.
LEAST_MESSAGE_BYTES = 65_536
_INFO_FIELDS = [name for name in ModelInfo.__dataclass_fields__ if name not in ("limits", "state_formats")]
_LIMIT_FIELDS = list(Limits.__dataclass_fields__)
_STATE_FORMATS: dict[StateFormat, Any] = {"float16": pb.STATE_FORMAT_FLOAT16, "int8": pb.STATE_FORMAT_INT8}


def info_to_pb(info: ModelInfo) -> pb.ModelInfo:
    """ModelInfo -> message; the field names are the same."""
    limits = pb.Limits(**{name: getattr(info.limits, name) for name in _LIMIT_FIELDS})
    formats = [_STATE_FORMATS[state_format] for state_format in info.state_formats]
    fields = {name: getattr(info, name) for name in _INFO_FIELDS}
    return pb.ModelInfo(limits=limits, state_formats=formats, **fields)


def info_from_pb(message: pb.ModelInfo) -> ModelInfo:
    """Message -> ModelInfo. Formats that this version does not know are left out."""
    limits = Limits(**{name: getattr(message.limits, name) for name in _LIMIT_FIELDS})
    # A server that names none is older than the choice.
    said = {pb.STATE_FORMAT_FLOAT16, *message.state_formats}
    formats = tuple(state_format for state_format, code in _STATE_FORMATS.items() if code in said)
    fields = {name: getattr(message, name) for name in _INFO_FIELDS}
    return ModelInfo(limits=limits, state_formats=formats, **fields)
