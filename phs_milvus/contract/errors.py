"""The one exception tree. Every error a user can meet derives from `PhsError` and says what to do about it.

PhsError
├── InvalidInput             (also ValueError)   a value is wrong; `.field` names it
│   ├── ImageError                               not an image, too large, unsupported pixels
│   ├── PromptError                              a point, box, polygon or mask that cannot be used
│   └── StateError                               bytes that are not a PHS state of this model
├── ModelError                                   a checkpoint that cannot be loaded or is not supported
├── ModelMismatch                                embeddings or states of another model
├── CollectionError                              a Milvus collection that is missing or of another shape
│   └── MilvusUnavailable                        Milvus does not answer, or is not ready yet
├── NotServing                                   the server's own words for UNAVAILABLE
│   ├── ServerLoading                            the model is not loaded yet
│   ├── ServerDraining                           it is shutting down
│   └── ServerBroken                             a thread that runs the model has died
├── TokenRefused                                 the server's own word for UNAUTHENTICATED
├── PortTaken                                    the server cannot listen where it was told to
└── EncoderError                                 the embedding server could not answer
    ├── EncoderUnavailable                       not reachable, starting, or draining
    ├── EncoderBusy                              its queue is full
    ├── DeadlineExceeded     (also TimeoutError)
    ├── PictureNotHeld                           it was asked for by a digest whose picture it does not hold
    └── EncoderUnauthenticated
"""

from __future__ import annotations

import re
from typing import ClassVar

_SHOWN_CHARACTERS = 200
# user:password@ or scheme://user:password@ in a text, or before the last "@" of a value; not "c:/x@y". Passwords may
# hold "/", ":" and "@".
_USER = r"(?:\w+://|[^\s/:@'\"]+:(?![/\\\s]))"
_CREDENTIALS = re.compile(rf"^{_USER}.*@|{_USER}[^\s'\"]*@")


class PhsError(Exception):
    """Base of every error raised by phs_milvus and phs_server."""


class InvalidInput(PhsError, ValueError):
    """A value the caller gave cannot be used. `field` names it, for example "image" or "prompt"."""

    default_field: ClassVar[str] = ""

    def __init__(self, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.field = self.default_field if field is None else field


class ImageError(InvalidInput):
    """The image cannot be read or is over a limit."""

    default_field = "image"


class PromptError(InvalidInput):
    """The prompt is malformed, or selects nothing in this image."""

    default_field = "prompt"


class StateError(InvalidInput):
    """The stored value is not a PHS state of the expected size."""

    default_field = "state"


class ModelError(PhsError):
    """The checkpoint cannot be loaded, or PHS cannot be computed on its architecture."""


class ModelMismatch(PhsError):
    """Two parts of the system use different models, so their embeddings cannot be compared."""


class CollectionError(PhsError):
    """The Milvus collection does not exist, or lacks what focused search needs."""


class MilvusUnavailable(CollectionError):
    """Milvus cannot be reached, did not answer in time, or is starting: the same call may work later."""


class NotServing(PhsError):
    """The server answers no requests now. Clients get it as `EncoderUnavailable`."""


class ServerLoading(NotServing):
    """The model is still loading."""


class ServerDraining(NotServing):
    """The server is shutting down; the request belongs to another one, or to this one after its restart."""


class ServerBroken(NotServing):
    """A thread that runs the model has died; the server must be restarted."""


class TokenRefused(PhsError):
    """A call carries no token that the server knows. Clients get it as `EncoderUnauthenticated`."""


class PortTaken(PhsError):
    """The server cannot listen on the address it was given."""


class EncoderError(PhsError):
    """The embedding server failed to answer."""


class EncoderUnavailable(EncoderError):
    """The embedding server cannot be reached, is still starting, or is shutting down."""


class EncoderBusy(EncoderError):
    """The embedding server's queue is full; try again later."""


class DeadlineExceeded(EncoderError, TimeoutError):
    """The embedding server did not answer within the timeout."""


class PictureNotHeld(EncoderError):
    """The server does not hold, or no longer, what is needed of the picture with this digest; send its bytes."""


class EncoderUnauthenticated(EncoderError):
    """The embedding server wants a token, or a different one."""


def shown(value: object, limit: int = _SHOWN_CHARACTERS) -> str:
    """A value as it stands in a message: one line of printable text, without the password of a URI, its middle left out
    where it is longer than `limit` characters.

    For what others gave: a path may be a photo in base64, and a foreign exception may quote all of a file.
    """
    text = str(value)
    if len(text) > 4 * limit:  # the rest is neither shown nor worth searching
        text = f"{text[: 2 * limit]} ... {text[-2 * limit :]}"
    text = _CREDENTIALS.sub(_without_credentials, " ".join(text.split()))
    text = "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
    if len(text) > limit:
        text = f"{text[: limit * 3 // 4]} ... {text[-(limit // 4) :]}"
    return text or "(empty)"


def _without_credentials(found: re.Match[str]) -> str:
    scheme, _, _ = found[0].rpartition("://") if "://" in found[0] else ("", "", "")
    return f"{scheme.partition(':')[0]}://***@" if scheme else "***@"


def reason_of(error: BaseException) -> str:
    """What an exception that is not ours has to say, for use in a message of ours."""
    if isinstance(error, FileExistsError | NotADirectoryError):
        return "a file is where a folder is needed"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return shown(error) if str(error) else type(error).__name__


# gRPC status code names (grpc.StatusCode.NAME) and the errors they become in the client. The server answers with the
# first row that fits the error it caught.
_BY_STATUS: dict[str, type[PhsError]] = {
    "INVALID_ARGUMENT": InvalidInput,
    "FAILED_PRECONDITION": ModelMismatch,
    "UNAVAILABLE": EncoderUnavailable,
    "RESOURCE_EXHAUSTED": EncoderBusy,
    "DEADLINE_EXCEEDED": DeadlineExceeded,
    "UNAUTHENTICATED": EncoderUnauthenticated,
    "PERMISSION_DENIED": EncoderUnauthenticated,
    "NOT_FOUND": PictureNotHeld,
}
# Characters of a server's message that an error keeps.
_LONGEST_DETAILS = 1000
_INVALID_BY_FIELD: dict[str, type[InvalidInput]] = {
    "image": ImageError,
    "mask": PromptError,
    "states": StateError,
}


def status_of(error: PhsError) -> tuple[str, str]:
    """The gRPC status a server answers `error` with: (code name, details). Unknown errors are INTERNAL."""
    if isinstance(error, InvalidInput):
        return "INVALID_ARGUMENT", f"{error.field}: {error}" if error.field else str(error)
    if isinstance(error, NotServing):
        return "UNAVAILABLE", str(error)
    if isinstance(error, TokenRefused):
        return "UNAUTHENTICATED", str(error)
    for code, kind in _BY_STATUS.items():
        if isinstance(error, kind):
            return code, str(error)
    return "INTERNAL", str(error)


def error_from_status(code: str, details: str) -> PhsError:
    """The inverse of `status_of`: the error that the client raises for a gRPC status.

    Args:
        code: the name of a grpc.StatusCode, for example "INVALID_ARGUMENT".
        details: the status message.
    """
    details = shown(details, _LONGEST_DETAILS)
    kind = _BY_STATUS.get(code)
    if kind is None:
        return EncoderError(f"{code}: {details}")
    if kind is InvalidInput:
        field, colon, message = details.partition(": ")
        if colon and field.isidentifier():
            return _INVALID_BY_FIELD.get(field, InvalidInput)(message, field)
    return kind(details)
