"""What `Encoder` and `AsyncEncoder` are made from: their arguments, and what they learn of the server."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from phs_milvus.client import answers, requests
from phs_milvus.client.balance import Balance
from phs_milvus.client.channels import Address, Tls, channel_credentials, channel_options, target_of, token_metadata
from phs_milvus.client.requests import DEFAULT_ADDRESS, DEFAULT_TIMEOUT
from phs_milvus.contract._pb import encoder_pb2 as pb
from phs_milvus.contract._pb import encoder_pb2_grpc as pb_grpc
from phs_milvus.contract.errors import EncoderUnavailable
from phs_milvus.contract.types import Limits, ModelInfo


class EncoderBase:
    """A client's arguments, checked, and its connections, which are opened when they are first used; see `Encoder`.

    Attributes:
        address: as it is shown to people.
    """

    _insecure_channel: Callable[..., Any]
    _secure_channel: Callable[..., Any]

    def __init__(
        self,
        address: Address = DEFAULT_ADDRESS,
        *,
        timeout: float = DEFAULT_TIMEOUT,
        expected_fingerprint: str = "",
        tls: Tls | bool | None = None,
        token: str | None = None,
    ) -> None:
        self.address, self._target = target_of(address)
        self._servers = [] if isinstance(address, str) or len(address) == 1 else list(dict.fromkeys(address))
        self._balance = Balance(self._servers)
        self._timeout = timeout
        self._expected = expected_fingerprint
        # Not known until `fetch_info` is called, by the user or to check the first answer; until then, the defaults.
        self._info: ModelInfo | None = None
        self._limits = Limits()
        self._metadata = token_metadata(token)
        self._credentials, self._options = channel_credentials(tls), channel_options(address, tls)
        # By server, None for all of them in turn; opened on first use.
        self._channels: dict[str | None, Any] = {}
        self._stubs: dict[str | None, pb_grpc.FocusEncoderStub] = {}
        self._opening = threading.Lock()
        self._closed = False

    @property
    def timeout(self) -> float:
        """Seconds that a call may take where it is given no timeout of its own."""
        return self._timeout

    def _learn(self, answer: pb.ModelInfo) -> ModelInfo:
        """Checks what the server says of itself, and binds this client to its model."""
        info = answers.model_info(answer, self.address)
        self._expected = requests.bound_to(self._expected, info)
        self._info, self._limits = info, info.limits
        return info

    @property
    def _stub(self) -> pb_grpc.FocusEncoderStub:
        """Calls of any server."""
        return self._stub_of(None)

    def _stub_of(self, server: str | None) -> pb_grpc.FocusEncoderStub:
        """Calls of one of several servers; None: of all of them in turn."""
        with self._opening:
            if self._closed:
                raise EncoderUnavailable("this Encoder is closed; use it, and what came of it, inside its `with`")
            if server not in self._stubs:
                target, options = (self._target, self._options) if server is None else (server, self._direct_options())
                self._channels[server] = (
                    self._insecure_channel(target, options)
                    if self._credentials is None
                    else self._secure_channel(target, self._credentials, options)
                )
                self._stubs[server] = pb_grpc.FocusEncoderStub(self._channels[server])
            return self._stubs[server]

    def _deadline(self, timeout: float | None) -> Callable[[], float]:
        """What is left, in seconds, of the time that a call may take with all its attempts."""
        until = time.monotonic() + (timeout or self._timeout)
        return lambda: max(0.001, until - time.monotonic())

    def _deadline_of_parts(self, timeout: float | None) -> Callable[[], float]:
        """The same for a call that is split into several requests; without a timeout each has the client's own."""
        return self._deadline(timeout) if timeout else lambda: self._timeout

    def _direct_options(self) -> list[tuple[str, int | str]]:
        """Options of a connection to one of several servers: what that one refuses goes to another, without a pause."""
        return [*self._options, ("grpc.enable_retries", 0)]
