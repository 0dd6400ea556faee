"""Pictures kept at hand, so that one that is pointed at again and again is read, sent and hashed once."""

from __future__ import annotations

import threading
from collections import OrderedDict

from phs_milvus.client.pictures import Opened
from phs_milvus.contract.errors import PictureNotHeld


class HeldPictures:
    """Holds the pictures used last, up to a number of bytes; thread-safe.

    Args:
        most_bytes: of all pictures together; the one used last stays, whatever it weighs.
    """

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes, self._bytes = most_bytes, 0
        self._pictures: OrderedDict[str, Opened] = OrderedDict()
        self._lock = threading.Lock()

    def put(self, key: str, picture: Opened) -> None:
        """Holds a picture in place of those used longest ago; where one of this key is held, that one stays."""
        with self._lock:
            if key not in self._pictures:
                self._pictures[key] = picture
                self._bytes += len(picture.data)
            self._pictures.move_to_end(key)
            while self._bytes > self._most_bytes and len(self._pictures) > 1:
                _, old = self._pictures.popitem(last=False)
                self._bytes -= len(old.data)

    def get(self, key: str) -> Opened:
        """The picture of this key.

        Raises:
            PictureNotHeld: it was never sent, or is held no longer.
        """
        with self._lock:
            if (picture := self._pictures.get(key)) is None:
                raise PictureNotHeld("this picture is not held here, or no longer; send it again")
            self._pictures.move_to_end(key)
            return picture
