"""Small messages from anybody: health checks and reflection, which no token guards.

gRPC takes in up to max_message_bytes of a message before any code of ours sees it, and has no smaller limit for one
method. So few are read at once, each for a short time: unfinished ones can fill no more memory than that many messages.
"""

from __future__ import annotations

import asyncio
from collections import Counter

import grpc

from phs_milvus.contract.errors import DeadlineExceeded, EncoderBusy, InvalidInput
from phs_server.edge.callers import Caller
from phs_server.edge.receiving import start_read

_AT_ONCE = 1
# A message is read for the longer time, or only for the shorter one where others wait.
_READ_SECONDS, _READ_SECONDS_BUSY = 1.0, 0.1
# Messages of one address that are read or wait to be.
_OF_ADDRESS = 32
# Names of services and symbols.
_LARGEST = 1024


class ProbeReader:
    """Reads the messages of probes. Belongs to one event loop."""

    def __init__(self) -> None:
        self._turns = asyncio.Semaphore(_AT_ONCE)
        self._waiting = 0
        self._addresses: Counter[str] = Counter()

    async def read(self, context: grpc.aio.ServicerContext, caller: Caller) -> bytes | None:
        """The next message; None where the caller sends no more.

        Raises:
            EncoderBusy: its address has too many unfinished ones, or there was no turn in time.
            DeadlineExceeded: it did not arrive in time.
            InvalidInput: it is larger than any probe.
        """
        if self._addresses[caller.address] >= _OF_ADDRESS:
            raise EncoderBusy("too many probes from this address; try again in a moment")
        self._addresses[caller.address] += 1
        try:
            await self._turn()
            try:
                message = await self._read(context)
            finally:
                self._turns.release()
        finally:
            self._addresses[caller.address] -= 1
            if not self._addresses[caller.address]:
                del self._addresses[caller.address]
        if message is grpc.aio.EOF:
            return None
        if len(message) > _LARGEST:
            raise InvalidInput(f"is {len(message)} bytes long; a probe has {_LARGEST} at most", "request")
        return bytes(message)

    async def _turn(self) -> None:
        self._waiting += 1
        try:
            await asyncio.wait_for(self._turns.acquire(), _READ_SECONDS)
        except asyncio.TimeoutError:
            raise EncoderBusy("too many probes; try again in a moment") from None
        finally:
            self._waiting -= 1

    async def _read(self, context: grpc.aio.ServicerContext) -> bytes:
        reading = start_read(context)
        until = asyncio.get_running_loop().time() + _READ_SECONDS
        while not reading.done():
            await asyncio.wait([reading], timeout=_READ_SECONDS_BUSY)
            if not reading.done() and (self._waiting or asyncio.get_running_loop().time() > until):
                raise DeadlineExceeded("the message of this probe did not arrive in time")
        return reading.result()
