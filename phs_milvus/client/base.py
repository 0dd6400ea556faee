"""What `Encoder` and `AsyncEncoder` are made from: their arguments, and what they learn of the server."""

from __future__ import annotations

from phs_milvus.client import answers, requests
from phs_milvus.client.channels import Address, Tls, channel_credentials, channel_options, target_of, token_metadata
from phs_milvus.client.requests import DEFAULT_ADDRESS, DEFAULT_TIMEOUT
from phs_milvus.contract._pb import encoder_pb2 as pb
from phs_milvus.contract.types import Limits, ModelInfo


class EncoderBase:
    """A client's arguments, checked; see `Encoder`. Opens no connection.

    Attributes:
        address: as it is shown to people.
    """

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
        self._timeout = timeout
        self._expected = expected_fingerprint
        # Not known until `fetch_info` is called, by the user or to check the first answer; until then, the defaults.
        self._info: ModelInfo | None = None
        self._limits = Limits()
        self._metadata = token_metadata(token)
        self._credentials, self._options = channel_credentials(tls), channel_options(address, tls)

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

    def _direct_options(self) -> list[tuple[str, int | str]]:
        """Options of a connection to one of several servers: what that one refuses goes to another, without a pause."""
        return [*self._options, ("grpc.enable_retries", 0)]
