"""ModelInfo of the contract <-> our ModelInfo."""

from __future__ import annotations

from phs_milvus.contract._pb import encoder_pb2 as pb
from phs_milvus.contract.types import Limits, ModelInfo

# The smallest limit on a message's bytes that a server may have.
LEAST_MESSAGE_BYTES = 65_536
_INFO_FIELDS = [name for name in ModelInfo.__dataclass_fields__ if name != "limits"]
_LIMIT_FIELDS = list(Limits.__dataclass_fields__)


def info_to_pb(info: ModelInfo) -> pb.ModelInfo:
    """ModelInfo -> message; the field names are the same."""
    limits = pb.Limits(**{name: getattr(info.limits, name) for name in _LIMIT_FIELDS})
    return pb.ModelInfo(limits=limits, **{name: getattr(info, name) for name in _INFO_FIELDS})


def info_from_pb(message: pb.ModelInfo) -> ModelInfo:
    """Message -> ModelInfo."""
    limits = Limits(**{name: getattr(message.limits, name) for name in _LIMIT_FIELDS})
    return ModelInfo(limits=limits, **{name: getattr(message, name) for name in _INFO_FIELDS})
