"""The entry point of `phs-server`."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence

from phs_server.config import parse


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the server with the flags of `phs-server --help`."""
    settings = parse(arguments)
    # Until the server takes signals itself: importing torch takes seconds, and ends in a traceback at Ctrl-C.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: os._exit(0))
    from phs_server.process import run

    run(settings)


if __name__ == "__main__":
    main()
