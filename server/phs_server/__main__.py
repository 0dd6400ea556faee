"""The entry point of `phs-server`: takes signals before the imports, which last seconds."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> None:
    """Reads the settings, then serves: help and wrong flags need neither torch nor the time to load it."""
    # Until the server takes signals itself; by default they end in a status that is not 0, or in a traceback.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: os._exit(0))
    from phs_server.config import parse

    settings = parse(arguments)
    try:
        from phs_server.process import run
    except ImportError as error:
        sys.exit(f"phs-server: the server extra is missing ({error}): pip install 'phs-milvus[server]'")
    run(settings)


if __name__ == "__main__":
    main()
