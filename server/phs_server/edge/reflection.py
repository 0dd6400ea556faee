"""Server reflection (grpc.reflection.v1alpha): the answers of grpcio-reflection behind our admission."""

from __future__ import annotations

from collections.abc import AsyncIterator

import grpc
from google.protobuf.message import DecodeError
from grpc_reflection.v1alpha import reflection, reflection_pb2

from phs_milvus.contract.errors import InvalidInput
from phs_server.edge.callers import Caller
from phs_server.edge.probes import ProbeReader

SERVICE_NAME = reflection.SERVICE_NAME
# Questions of one call; a listing of everything here asks fewer.
_MOST_QUESTIONS = 100


class Reflection:
    """Tells which services there are.

    Args:
        names: full names of the services.
    """

    def __init__(self, names: tuple[str, ...], reader: ProbeReader) -> None:
        self._answers = reflection.aio.ReflectionServicer((*names, SERVICE_NAME))
        self._reader = reader

    async def serve(self, context: grpc.aio.ServicerContext, caller: Caller) -> None:
        """Answers one call; raises what `ProbeReader.read` does."""
        async for answer in self._answers.ServerReflectionInfo(self._questions(context, caller), context):
            await context.write(answer.SerializeToString())

    async def _questions(
        self, context: grpc.aio.ServicerContext, caller: Caller
    ) -> AsyncIterator[reflection_pb2.ServerReflectionRequest]:
        for _ in range(_MOST_QUESTIONS):
            message = await self._reader.read(context, caller)
            if message is None:
                return
            try:
                yield reflection_pb2.ServerReflectionRequest.FromString(message)
            except DecodeError as error:
                raise InvalidInput(f"not a message of this method ({error})", "request") from None
