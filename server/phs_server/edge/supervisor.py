"""Whether this server still answers: it calls itself, through the same gRPC server, on a socket that only it finds.

A server that hangs and looks healthy is the worst outcome: systemd or Kubernetes start it again only when the process
has ended. So the call takes the way of every other one, through gRPC's accept loop and our event loop, but past
admission: a full server is not a broken one.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import grpc

from phs_server.edge.callers import caller_of

log = logging.getLogger(__name__)

SERVICE_NAME, METHOD = "phs.v1.Self", "Answer"
_EVERY_SECONDS, _TIMEOUT_SECONDS, _FAILURES = 5.0, 5.0, 3
# Of memory, writable in most containers with a read-only root too, and short enough for the 107 bytes of an address.
_FOLDER = "/dev/shm"


class PrivateSocket:
    """A Unix socket that answers this process: its name is gone before the server starts, a descriptor leads to it.

    It has neither TLS nor tokens, so no other user may reach it: they could call, or take all its connections until the
    supervisor takes the server for a broken one. Root, and other processes of this user, find it in /proc: they could
    end this one anyway. `phs_server.edge.calls` gives them no method but this one.

    Attributes:
        address: for `Supervisor`.

    Args:
        server: not started yet.

    Raises:
        OSError, RuntimeError: the system has no such sockets, or no folder to make one in.
    """

    def __init__(self, server: grpc.aio.Server) -> None:
        if sys.platform != "linux":
            raise OSError("sockets without a name need Linux")
        parent = _FOLDER if os.access(_FOLDER, os.W_OK) else None
        with tempfile.TemporaryDirectory(prefix="phs-server-", dir=parent) as folder:  # of mode 0700
            path = Path(folder, "self")
            server.add_insecure_port(f"unix:{path}")
            self._descriptor = os.open(path, os.O_PATH)
        self.address = f"unix:/proc/self/fd/{self._descriptor}"
        with socket.socket(socket.AF_UNIX) as probe:  # some sandboxes have a /proc that leads nowhere
            probe.connect(self.address.removeprefix("unix:"))
        _add_to(server)

    def close(self) -> None:
        """Forgets the socket; the server stops listening by itself."""
        os.close(self._descriptor)


def listen(server: grpc.aio.Server) -> PrivateSocket | None:
    """A new private socket; None, and a warning, where there cannot be one."""
    try:
        return PrivateSocket(server)
    except (OSError, RuntimeError) as error:
        log.warning("cannot call itself, so nothing ends this server if it hangs (%s)", error)
        return None


def _add_to(server: grpc.aio.Server) -> None:
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
        address: of a `PrivateSocket`.
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
