"""Pictures of strangers are decoded in a child process, which may crash, hang or run out of memory: that costs its one
picture a named error, and nobody else anything.

    header = read_header(data)
    cost = cost_of(header, side=224, max_pixels=Limits.image_pixels)  # phs_milvus.contract.cost
    with Decoder() as decoder:
        pixels = decoder.fitted(header, cost, side=224, resample=3)

The child imports Pillow and numpy only, has no open file but its pipes and cannot open one, and limits its own memory
and processor time for each picture by what the header declares. It ends when its input does: a parent that is killed
leaves none behind. The answer is plain bytes of a known length: a decoder that was taken over gains nothing by them.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import numpy as np
import numpy.typing as npt

from phs_milvus.contract.cost import Cost
from phs_milvus.contract.errors import EncoderUnavailable, ImageError
from phs_milvus.contract.headers import Header
from phs_milvus.contract.types import Region

READY = b"R"
# The answer's first byte, and the length of what follows, 4 bytes, little-endian.
PIXELS, ERROR = b"P", b"E"
_MAX_ERROR = 4096
_START_SECONDS = 60.0
_PIPE_BYTES = 2**20


class Decoder:
    """One child process that decodes pictures, one at a time; other threads wait, so have one for each.

    It starts with `start` or the first picture, and anew after each that it did not survive.
    """

    def __init__(self) -> None:
        self._child: subprocess.Popen[bytes] | None = None
        self._ready = False
        self._closed = False
        self._in_use = threading.Lock()

    def start(self) -> None:
        """Starts the child and waits for it, a quarter of a second.

        Raises:
            EncoderUnavailable: it cannot be started, or was closed.
        """
        with self._in_use:
            self._started()

    def fitted(
        self, header: Header, cost: Cost, side: int, resample: int, region: Region | None = None
    ) -> npt.NDArray[np.uint8]:
        """`phs_milvus.contract.pixels.fitted` in the child: uint8 [3, side, side], RGB; read-only.

        Raises:
            ImageError: not decodable, or not within `cost`.
            EncoderUnavailable: the child cannot be started.
        """
        task = {
            "format": header.format,
            "width": header.width,
            "height": header.height,
            "orientation": header.orientation,
            "bytes": len(header.data),
            "side": side,
            "resample": resample,
            "region": region,
            "scale": cost.scale,
            "memory": cost.memory,
            "seconds": cost.seconds,
        }
        with self._in_use, self._one_picture(cost):
            # A machine that is busy gives a child less than a core.
            until = time.monotonic() + 4 * cost.seconds + 5
            asked = json.dumps(task).encode()
            self._send(len(asked).to_bytes(4, "little") + asked, until)
            self._send(header.data, until)
            head = self._receive(5, until)
            size = int.from_bytes(head[1:], "little")
            if (head[:1], size) == (PIXELS, 3 * side * side):
                return np.frombuffer(self._receive(size, until), np.uint8).reshape(3, side, side)
            if head[:1] != ERROR or size > _MAX_ERROR:
                raise _Lost
            raise ImageError(self._receive(size, until).decode("utf-8", "replace"))

    def close(self) -> None:
        """Ends the child, also in the middle of a picture."""
        self._closed = True
        if (child := self._child) is not None:
            child.kill()
        with self._in_use:
            self._discard()

    def __enter__(self) -> Decoder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _started(self) -> None:
        """Starts the child where there is none, and waits until it has started."""
        self._launch()
        if self._ready:
            return
        with suppress(_Lost):
            self._ready = self._receive(1, time.monotonic() + _START_SECONDS) == READY
        if not self._ready:
            self._discard()
            raise EncoderUnavailable(
                "the process that decodes images does not start: does "
                f"`{sys.executable} -c 'import phs_milvus.contract.decoding_child'` work?"
            )

    def _discard(self) -> None:
        child, self._child, self._ready = self._child, None, False
        if child is None:
            return
        child.kill()
        child.wait()
        for pipe in (child.stdin, child.stdout):
            if pipe is not None:
                pipe.close()

    def _launch(self) -> None:
        if self._child is not None and self._child.poll() is None:
            return
        self._discard()
        if self._closed:
            raise EncoderUnavailable("the process that decodes images was closed")
        # The child finds modules where this process does, and nowhere else: not in the folder it happens to be in.
        code = f"import sys; sys.path[:] = {sys.path!r}; from phs_milvus.contract.decoding_child import main; main()"
        environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}
        try:
            self._child = subprocess.Popen(
                [sys.executable, "-c", code],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                bufsize=0,
                env=environment,
                start_new_session=True,  # Ctrl-C is for the parent, which still needs it for what it has accepted
            )
        except OSError as error:
            raise EncoderUnavailable(f"cannot start a process to decode images in: {error}") from error
        for pipe in (self._child.stdin, self._child.stdout):
            assert pipe is not None
            os.set_blocking(pipe.fileno(), False)
            _widen(pipe.fileno())

    @contextmanager
    def _one_picture(self, cost: Cost) -> Iterator[None]:
        """A picture that the child does not survive is an ImageError, and the next one gets a new child."""
        self._started()
        whole = False
        try:
            yield
            whole = True
        except ImageError:
            whole = True
            raise
        except _Lost:
            raise ImageError(self._end(cost)) from None
        finally:
            if not whole:  # also where this thread was interrupted: the answer that is due must not be the next one's
                self._discard()
                with suppress(EncoderUnavailable):
                    self._launch()

    def _end(self, cost: Cost) -> str:
        """What became of the child."""
        assert self._child is not None
        status: int | None = None
        with suppress(subprocess.TimeoutExpired):
            status = self._child.wait(0.5)
        if status is None or status == -signal.SIGPROF:
            return f"takes more than the {cost.seconds:.1f} s of processor time that an image of its size may take"
        return f"crashed its decoder (status {status}): the file is corrupt or malicious"

    def _send(self, data: bytes, until: float) -> None:
        assert self._child is not None and self._child.stdin is not None
        pipe, view = self._child.stdin.fileno(), memoryview(data)
        while view:
            _wait(pipe, select.POLLOUT, until)
            try:
                view = view[os.write(pipe, view[:_PIPE_BYTES]) :]
            except BlockingIOError:
                continue
            except OSError:
                raise _Lost from None

    def _receive(self, size: int, until: float) -> bytes:
        assert self._child is not None and self._child.stdout is not None
        pipe, parts = self._child.stdout.fileno(), []
        while size:
            _wait(pipe, select.POLLIN, until)
            part = os.read(pipe, min(size, _PIPE_BYTES))
            if not part:
                raise _Lost
            parts.append(part)
            size -= len(part)
        return b"".join(parts)


class _Lost(Exception):
    """The child has ended, answers nonsense, or does not answer in time."""


def _wait(pipe: int, event: int, until: float) -> None:
    poll = select.poll()
    poll.register(pipe, event)
    if not poll.poll(max(0.0, until - time.monotonic()) * 1000):
        raise _Lost


def _widen(pipe: int) -> None:
    """Gives a pipe room for a usual file, so that the two processes do not wait for each other in the middle of one."""
    with suppress(ImportError, AttributeError, OSError):  # Linux has it, and only so much of it for one user
        import fcntl

        fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
