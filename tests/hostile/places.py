"""Values for the flags of a command: paths, addresses and numbers that are none, and files under a wrong name."""

from __future__ import annotations

import json
from pathlib import Path

# Relative to a folder that `make_places` has filled.
NONSENSE_PATHS = (
    "",
    ".",
    "no/such",
    "file",
    "file/x",
    "empty",
    "/dev/null",
    "/dev/full",
    "/dev/zero/x",
    "/proc/nowhere",
    "x" * 300,
    "n" * 5000,
    "a\x1bb",
    "~nobodyhere/x",
    "\udcff\udcfe",
    "https://example.org/a.jpg",
    "data:image/png;base64," + "A" * 9000,
)
# Those with a password have "secretpw" for it.
NONSENSE_URIS = (
    ",",
    "host",
    "http://",
    "http://:1",
    "http://[::1",
    "http://127.0.0.1:99999",
    "http://127.0.0.1:x",
    "http://me:secretpw@127.0.0.1:1",
    "https://me:secretpw@127.0.0.1:1/some@db",
    "http://me:secretpw with@spaces@127.0.0.1:1",
    "me:secretpw@127.0.0.1:1",
    "ftp://me:secretpw@127.0.0.1",
    "unix:/no/such/socket",
    "127.0.0.1:1,127.0.0.1:2",
    "\udcff:1",
    "x" * 5000 + ":1",
)
NONSENSE_NUMBERS = (
    "abc",
    "-1",
    "0",
    "1e400",
    "nan",
    "9" * 5000,
    "99999999999999999999",
    "4294967296",
    "1,2",
    "\udcff",
    "½",
)


def make_places(folder: Path) -> None:
    """Fills a folder with what those paths name."""
    (folder / "empty").mkdir()
    (folder / "file").write_text("some text")
    (folder / "deep.json").write_text("[" * 200_000)
    (folder / "binary.json").write_bytes(bytes(range(256)) * 50)
    (folder / "null.json").write_text("null")
    (folder / "list.json").write_text("[1]")
    (folder / "number.json").write_text('{"focus": 5}')
    (folder / "huge.json").write_text(json.dumps({"A" * 4_000_000: 1}))
