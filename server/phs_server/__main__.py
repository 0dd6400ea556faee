"""Entry point of `phs-server`."""

from __future__ import annotations

import sys

from phs_server.config import parse


def main() -> None:
    """Reads the settings, then serves: help and wrong flags need neither torch nor the time to load it."""
    settings = parse()
    try:
        from phs_server.app import run
    except ImportError as error:
        sys.exit(f"phs-server: the server extra is missing ({error}): pip install 'phs-milvus[server]'")
    sys.exit(run(settings))


if __name__ == "__main__":
    main()
