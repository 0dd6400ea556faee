"""The server as a process of its own: signals, supervision, and an end that nothing holds up."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from typing import Any, NoReturn

from phs_milvus.contract.errors import InvalidInput, PhsError
from phs_server.app import Server
from phs_server.config import Settings
from phs_server.edge.supervisor import Supervisor
from phs_server.ops import files, logs

log = logging.getLogger(__name__)

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
# Exit statuses: told to stop; cannot serve; settings that cannot be used; broken, to be started again.
STOPPED, FAILED, UNUSABLE, BROKEN = 0, 1, 2, 70
_LOG_SECONDS = 1.0


def run(settings: Settings) -> NoReturn:
    """Serves in the foreground until SIGTERM or Ctrl-C, then drains, and ends the process; a second signal ends it at
    once."""
    files.raise_limit()
    writer = logs.configure(settings.log_level, settings.log_format)
    try:
        # Not asyncio.run: cancelling what gRPC leaves behind makes it write tracebacks, and the process ends anyway.
        status = asyncio.new_event_loop().run_until_complete(_serve(settings, writer))
    except PhsError as error:
        field = error.field if isinstance(error, InvalidInput) else ""
        writer.write(f"phs-server: {f'{field}: ' if field else ''}{error}\n")
        status = UNUSABLE if isinstance(error, InvalidInput) else FAILED
    except KeyboardInterrupt:
        status = STOPPED
    writer.drain(_LOG_SECONDS)
    # Python would wait for threads, and torch and gRPC abort the process where theirs still run.
    os._exit(status)


async def _serve(settings: Settings, writer: logs.Writer) -> int:
    loop, stop = asyncio.get_running_loop(), asyncio.Event()

    def on_signal() -> None:
        for number in _SIGNALS:
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_DFL)
        stop.set()

    for number in _SIGNALS:
        loop.add_signal_handler(number, on_signal)
    server = Server(settings, supervised=True)
    starting = asyncio.create_task(server.start())
    stopping = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait([starting, stopping], return_when=asyncio.FIRST_COMPLETED)
        if not stopping.done():
            starting.result()
            if not await _supervised(server, stopping, writer):
                return BROKEN
        log.info("draining for up to %g s", settings.drain_seconds)
    finally:
        starting.cancel()
        stopping.cancel()
        await server.stop()
    log.info("stopped")
    return STOPPED


async def _supervised(server: Server, stopping: asyncio.Task[Any], writer: logs.Writer) -> bool:
    """Waits for the signal to stop; False where the server ended by itself before."""
    supervisor = Supervisor(server.private_address, lambda: _give_up(writer)) if server.private_address else None
    ended = asyncio.create_task(server.ended())
    if supervisor:
        supervisor.start()
    await asyncio.wait([ended, stopping], return_when=asyncio.FIRST_COMPLETED)
    if supervisor:
        supervisor.stop()
    # Left to itself: cancelling it would cancel what gRPC's own stop waits for.
    if stopping.done():
        return True
    log.critical("the gRPC server has ended by itself (%s); start it again", ended.exception())
    return False


def _give_up(writer: logs.Writer) -> None:
    """On the supervisor's thread: nothing else in this process can be relied upon."""
    log.critical("the server does not answer its own calls any more; start it again")
    writer.drain(_LOG_SECONDS)
    os._exit(BROKEN)
