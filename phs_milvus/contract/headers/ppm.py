"""PPM, PGM and PBM: numbers with comments between, which are left out: Pillow reads them byte by byte."""

from __future__ import annotations

import re

from phs_milvus.contract.errors import ImageError
from phs_milvus.contract.headers.header import Broken, Header

_MAX_HEADER = 65_536
_NUMBER = re.compile(rb"(?:\s|#[^\r\n]*[\r\n])*([0-9]{1,10})(?=[\s#])")


def read(data: bytes) -> Header:
    numbers, position = [], 2
    for _ in range(2 if data[1:2] in b"14" else 3):
        found = _NUMBER.match(data, position, _MAX_HEADER)
        if found is None:
            if len(data) > _MAX_HEADER and b"#" in data[:_MAX_HEADER]:
                raise ImageError(f"the PPM image has a header of more than {_MAX_HEADER:,} bytes")
            raise Broken("no size")
        numbers.append(int(found[1]))
        position = found.end()
    plain = data[:2] + b"".join(b" %d" % number for number in numbers) + b"\n" + data[position + 1 :]
    return Header("PPM", numbers[0], numbers[1], plain)
