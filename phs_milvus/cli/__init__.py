"""The `phs-milvus` command: each module adds its commands to the parser, calls the library, and prints.

Whatever goes wrong, the user reads one line: nothing beyond the standard library is imported before `main` sees to it.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from typing import Any, NoReturn


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Entry point of `phs-milvus`. Exit status: 0 done, 1 failed or some files failed, 2 wrong usage, 130 Ctrl-C.

    With PHS_TRACEBACK=1 in the environment, errors that are not ours come with their traceback.
    """
    _prepare_streams()
    try:
        sys.unraisablehook = _unraisable
        status = _run(arguments)
        if sys.stdout is not None:
            sys.stdout.flush()  # here, where a full disk or a closed pipe is still an error of ours
    except KeyboardInterrupt:
        _leave_interrupted(arguments)
    except BrokenPipeError:
        # The reader of our output went away, as `head` does.
        _forget_stdout()
        status = 1
    except Exception as error:
        status = _explain(error)
    sys.exit(status)


def _run(arguments: Sequence[str] | None) -> int:
    try:
        options = _parser().parse_args(arguments)
    except SystemExit as usage:  # --help, or wrong usage
        return int(usage.code or 0)
    return int(options.run(options))


def _parser() -> argparse.ArgumentParser:
    from phs_milvus.cli import (
        attach,
        collect,
        demo,
        evaluate,
        export_states,
        page,
        rerank_endpoint,
        scale,
        search,
        serve,
    )

    parser = _Parser(
        prog="phs-milvus",
        description="Search a Milvus image collection by the thing you point at.",
        epilog="Start: phs-milvus ingest ~/photos, then phs-milvus search photo.jpg --box 40,60,180,220 --save out.png",
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for module in (collect, attach, scale, export_states, search, page, demo, evaluate, serve, rerank_endpoint):
        module.add_commands(commands)
    return parser


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        from phs_milvus.contract.errors import shown

        super().error(shown(message, 400))


def _prepare_streams() -> None:
    """Names and results have characters that a terminal of code page 1252, or a pipe of ASCII, cannot show."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    # gRPC's C++ core logs what its Python side raises as well.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")


def _explain(error: Exception) -> int:
    """Prints what went wrong; returns the exit status."""
    from phs_milvus.contract.errors import PhsError, reason_of, shown

    if isinstance(error, PhsError):
        field = getattr(error, "field", "")
        _say(f"{field + ': ' if field else ''}{error}")
        return 1
    if os.environ.get("PHS_TRACEBACK"):
        raise error
    if isinstance(error, MemoryError):
        _say("out of memory; close other programs, or use a smaller model or --limit")
    elif isinstance(error, OSError) and error.strerror:
        if error.filename is None and sys.stdout is not None:
            _forget_stdout()  # it cannot be written: at exit Python would try again
        _say(f"{shown(error.filename or 'output')}: {error.strerror}")
    else:
        _say(
            f"unexpected {type(error).__name__}: {reason_of(error)}; please report it, with what is printed when the "
            "command runs with PHS_TRACEBACK=1"
        )
    return 1


def _say(message: str) -> None:
    line = " ".join(message.split())
    print(f"phs-milvus: {line if len(line) < 2000 else line[:2000] + ' ...'}", file=sys.stderr)


def _leave_interrupted(arguments: Sequence[str] | None) -> NoReturn:
    """What had to be closed is closed by now. Python is not ended by its own means: threads that load or run a model
    would be stopped inside C++, which ends in messages of its own."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    words = sys.argv[1:] if arguments is None else arguments
    _say(f"interrupted; run the same command again to {'start over' if 'demo' in words[:1] else 'continue'}")
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError, AttributeError):
            continue
    os._exit(130)


def _unraisable(event: Any) -> None:
    """Ctrl-C inside a callback or a destructor, where Python only reports it, is tried again outside of it."""
    if isinstance(event.exc_value, KeyboardInterrupt):
        import _thread

        _thread.interrupt_main()
    else:
        sys.__unraisablehook__(event)


def _forget_stdout() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


__all__ = ["main"]
