"""The child of `phs_milvus.contract.decoding`: pictures come in, pixels go out, until its input ends."""

from __future__ import annotations

import json
import os
import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from PIL import Image

from phs_milvus.contract import pixels
from phs_milvus.contract.decoding import ERROR, PIXELS, READY
from phs_milvus.contract.errors import ImageError
from phs_milvus.contract.headers import Header

_INPUT, _OUTPUT = 0, 1
_BLOCK = 2**20
_MAX_TEXT = 1000


def main() -> None:
    """Serves until the input ends. Only the parent ends it, or a limit: never a signal meant for the whole group."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    warnings.simplefilter("ignore")
    Image.MAX_IMAGE_PIXELS = None  # the parent has checked
    _import_now()
    at_rest = _confine()
    _write(READY)
    while True:
        task = json.loads(_read(int.from_bytes(_read(4), "little")))
        data = _read(task["bytes"])
        try:
            with _limited(at_rest and at_rest + task["memory"], task["seconds"]):
                answer = PIXELS, _decoded(task, data)
        except MemoryError:
            answer = ERROR, b"takes more memory to decode than an image of its size may take (--max-image-pixels)"
        except ImageError as error:
            answer = ERROR, str(error).encode("utf-8", "replace")[:_MAX_TEXT]
        except Exception as error:
            answer = ERROR, f"the image cannot be decoded: {type(error).__name__}".encode()
        del data
        _write(answer[0] + len(answer[1]).to_bytes(4, "little") + answer[1])


def _decoded(task: dict[str, Any], data: bytes) -> bytes:
    header = Header(task["format"], task["width"], task["height"], data, task["orientation"])
    region = tuple(task["region"]) if task["region"] else None
    return pixels.fitted(header, task["side"], task["resample"], region, task["scale"]).tobytes()


def _import_now() -> None:
    """What Pillow imports when it first needs it; later no file can be opened."""
    with suppress(ImportError):
        from PIL import ImageCms, ImageOps, ImagePalette  # noqa: F401
    import encodings.latin_1  # noqa: F401


def _confine() -> int | None:
    """Takes away files, sockets and core dumps for good; returns the address space in use in bytes, where known."""
    in_use = None
    with suppress(OSError, ValueError, IndexError), open("/proc/self/statm") as file:  # noqa: PTH123
        in_use = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    with suppress(ImportError):
        import resource

        for limit, most in ((resource.RLIMIT_CORE, 0), (resource.RLIMIT_FSIZE, 0), (resource.RLIMIT_NOFILE, 3)):
            with suppress(OSError, ValueError):
                resource.setrlimit(limit, (most, most))
    return in_use


@contextmanager
def _limited(address_space: int | None, seconds: float) -> Iterator[None]:
    """Within it, memory is bounded, and so is processor time, at whose end the kernel ends this process."""
    _set_address_space(address_space)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        _set_address_space(None)


def _set_address_space(size: int | None) -> None:
    """None reads to the end."""
    with suppress(ImportError, OSError, ValueError):
        import resource

        most = resource.getrlimit(resource.RLIMIT_AS)[1]
        wanted = most if size is None else size if most == resource.RLIM_INFINITY else min(size, most)
        resource.setrlimit(resource.RLIMIT_AS, (wanted, most))


def _read(size: int) -> bytes:
    parts = []
    while size:
        part = os.read(_INPUT, min(size, _BLOCK))
        if not part:
            os._exit(0)  # the parent has gone, or wants no more
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def _write(data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(_OUTPUT, view) :]
