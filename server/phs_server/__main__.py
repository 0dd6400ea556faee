"""The entry point of `phs-server`."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence

from phs_server.config import parse


def main(arguments: Sequence[str] | None = None) -> None:
    """Reads the settings, then serves: help and wrong flags need neither torch nor the time to load it."""
    settings = parse(arguments)
    # Until the server takes signals itself: importing torch takes seconds, and ends in a traceback at Ctrl-C.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: os._exit(0))
    try:
        from phs_server.process import run
    except ImportError as error:
        sys.exit(f"phs-server: the server extra is missing ({error}): pip install 'phs-milvus[server]'")
    run(settings)


if __name__ == "__main__":
    main()
