"""The file of states: keys and int8 states of a collection as Arrow IPC, which a server maps and never reads whole.

    key      string or int64
    scales   fixed_shape_tensor float16 [2, ceil(D / 64)]
    values   fixed_shape_tensor int8 [2, D]

The schema's metadata has, under "phs_states", a JSON object with the fields of `StatesHeader`. Needs pyarrow (the extra
`scale`), which is imported where it is used.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from typing import Any

from phs_milvus.contract.errors import PhsError, StateError
from phs_milvus.contract.int8_states import blocks_of

_METADATA = b"phs_states"
_LARGEST_SIZE = 2**16


@dataclass(frozen=True)
class StatesHeader:
    """What a file of states says of itself.

    Attributes:
        collection: the name of the collection that was exported.
        exported_at: when the export began (UTC).
        fingerprint, model_id: of the model whose states they are.
        hidden_size: D.
    """

    collection: str
    exported_at: datetime
    fingerprint: str
    model_id: str
    hidden_size: int

    def schema(self, *, text_keys: bool) -> Any:
        """The file's pyarrow.Schema."""
        pa = arrow()
        blocks = blocks_of(self.hidden_size)
        fields = [
            pa.field("key", pa.string() if text_keys else pa.int64(), nullable=False),
            pa.field("scales", pa.fixed_shape_tensor(pa.float16(), [2, blocks]), nullable=False),
            pa.field("values", pa.fixed_shape_tensor(pa.int8(), [2, self.hidden_size]), nullable=False),
        ]
        text = json.dumps(asdict(replace(self, exported_at=self.exported_at.isoformat())))  # type: ignore[arg-type]
        return pa.schema(fields, metadata={_METADATA: text.encode()})

    @classmethod
    def of(cls, schema: Any) -> StatesHeader:
        """What the pyarrow.Schema of a file says.

        Raises:
            StateError: it is no file of states, or has other columns.
        """
        try:
            values = json.loads((schema.metadata or {})[_METADATA])
            at = datetime.fromisoformat(values["exported_at"]).astimezone(timezone.utc)
            header = cls(
                str(values["collection"]),
                at,
                str(values["fingerprint"]),
                str(values["model_id"]),
                int(values["hidden_size"]),
            )
        except (KeyError, TypeError, ValueError, OverflowError):
            raise StateError("is no file of states, which phs-milvus export-states writes", "states") from None
        fitting = 1 <= header.hidden_size <= _LARGEST_SIZE
        if not fitting or not any(schema.equals(header.schema(text_keys=text)) for text in (True, False)):
            raise StateError("has other columns than a file of states of this version; export it again", "states")
        return header


def arrow() -> Any:
    """The package pyarrow.

    Raises:
        PhsError: it is not installed.
    """
    try:
        import pyarrow
    except ImportError:
        raise PhsError("files of states need pyarrow: pip install 'phs-milvus[scale]'") from None
    return pyarrow
