"""Whether this server still answers: it calls itself, through the same gRPC server, on a port that only it uses.

A server that hangs and looks healthy is the worst outcome: systemd or Kubernetes start it again only when the process
has ended. So the call takes the way of every other one, through gRPC's accept loop and our event loop, but past
admission: a full server is not a broken one.
"""

from __future__ import annotations

import os
import secrets
import sys
import threading
from collections.abc import Callable

import grpc

from phs_server.edge.callers import caller_of

SERVICE_NAME, METHOD = "phs.v1.Self", "Answer"
_EVERY_SECONDS, _TIMEOUT_SECONDS, _FAILURES = 5.0, 5.0, 3


def private_address() -> str | None:
    """A new address for the server's own calls; None where the system has no abstract Unix sockets."""
    return f"unix-abstract:phs-server-{os.getpid()}-{secrets.token_hex(8)}" if sys.platform == "linux" else None


def add_to(server: grpc.aio.Server) -> None:
    """Registers the method."""
    handlers = {METHOD: grpc.stream_stream_rpc_method_handler(_answer)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE_NAME, handlers),))


async def _answer(_: object, context: grpc.aio.ServicerContext) -> None:
    if caller_of(context.peer()).is_private:
        await context.write(b"")
    else:
        context.set_code(grpc.StatusCode.UNIMPLEMENTED)
        context.set_details("Method not found!")


class Supervisor:
    """Calls the server every few seconds, on a thread of its own, until one attempt after another has failed.

    Args:
        address: of `private_address`, on which the server listens.
        failed: called once, on that thread.
    """

    def __init__(self, address: str, failed: Callable[[], object]) -> None:
        self._address = address
        self._failed = failed
        self._stop = threading.Event()

    def start(self) -> None:
        threading.Thread(target=self._watch, name="supervisor", daemon=True).start()

    def stop(self) -> None:
        self._stop.set()

    def _watch(self) -> None:
        failures = 0
        while not self._stop.wait(_EVERY_SECONDS):
            failures = 0 if self._answers() else failures + 1
            if failures == _FAILURES:
                self._failed()
                return

    def _answers(self) -> bool:
        # A channel of its own each time: a stuck connection must not speak for the server.
        with grpc.insecure_channel(self._address, [("grpc.use_local_subchannel_pool", 1)]) as channel:
            try:
                channel.unary_unary(f"/{SERVICE_NAME}/{METHOD}")(b"", timeout=_TIMEOUT_SECONDS, wait_for_ready=True)
            except grpc.RpcError:
                return False
        return True
