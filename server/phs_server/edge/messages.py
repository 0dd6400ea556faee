"""What reading a message may cost is checked on its bytes, before protobuf makes ten times as much of them.

A request is a few numbers and a few large `bytes`. Lists are short, but for a mask's runs: 60 MB of one-byte entries
would become half a gigabyte, and hold the event loop for seconds.
"""

from __future__ import annotations

from collections import Counter
from typing import Any, TypeVar

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from phs_milvus.contract.errors import InvalidInput, PromptError
from phs_milvus.contract.wire import MOST_PROMPTS

Kind = TypeVar("Kind", bound=Message)

# Fields of one message and of those in it; far more than any sender has reason to write.
_MOST_FIELDS = 1024
# Bytes of a list of numbers, or of one number over all prompts (5 each at most), and of a text.
_LONGEST_LIST, _LONGEST_TEXT = 5 * MOST_PROMPTS, 4096
# A mask's runs: reading 4 million takes the event loop 0.2 s; a mask that needs more is noise, not a prompt.
MOST_RUNS = 2**22
_LONGEST = {"phs.v1.Mask.runs": 5 * MOST_RUNS}

_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5


def parse(kind: type[Kind], data: bytes) -> Kind:
    """Parses a message that may come from anyone.

    Raises:
        InvalidInput: a field with more entries than it may have, which is named.
        google.protobuf.message.DecodeError: no message of this kind.
    """
    _check(memoryview(data), kind.DESCRIPTOR, "request", Counter())
    return kind.FromString(data)


def check_runs(runs: int) -> None:
    """Refuses masks that together have more runs than can be read in reasonable time.

    Raises:
        PromptError: they have.
    """
    if runs > MOST_RUNS:
        raise PromptError(f"has {runs} runs; this server takes up to {MOST_RUNS}", "mask")


def _check(data: memoryview, kind: Any, within: str, spent: Counter[str]) -> None:
    """Walks the fields, also of messages in this one; `spent` counts them, and the bytes of each list and text.

    Bytes that are no message are left to the parser to refuse.
    """
    position = 0
    while position < len(data):
        tag, start = _varint(data, position)
        field, wire_type = kind.fields_by_number.get(tag >> 3), tag & 7
        # The outermost name that says something: a stream's items wrap their request.
        name = field.name if field is not None and within == "request" else within
        spent["fields"] += 1
        if spent["fields"] > _MOST_FIELDS:
            raise InvalidInput(f"over {_MOST_FIELDS} fields in one message; write lists packed", name)
        if wire_type == _LENGTH:
            length, start = _varint(data, start)
            position = start + length
        elif wire_type == _VARINT:
            _, position = _varint(data, start)
        elif wire_type in (_FIXED32, _FIXED64):
            position = start + (4 if wire_type == _FIXED32 else 8)
        else:
            return
        if field is None or field.type == FieldDescriptor.TYPE_BYTES:
            continue
        if field.type == FieldDescriptor.TYPE_MESSAGE:
            _check(data[start:position], field.message_type, name, spent)
            continue
        spent[field.full_name] += position - start
        longest = _LONGEST_TEXT if field.type == FieldDescriptor.TYPE_STRING else _LONGEST_LIST
        if spent[field.full_name] > (most := _LONGEST.get(field.full_name, longest)):
            raise InvalidInput(f"{field.name} of {spent[field.full_name]} bytes; this server takes {most}", name)


def _varint(data: memoryview, position: int) -> tuple[int, int]:
    """(value, position after it); past the end where it is cut off."""
    value = 0
    for index, byte in enumerate(data[position : position + 10]):
        value |= (byte & 0x7F) << 7 * index
        if byte < 0x80:
            return value, position + index + 1
    return value, len(data)
