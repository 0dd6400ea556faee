"""Finds out whether a server that stopped answering is gone, or was only stopped by one file."""

from __future__ import annotations

import time

import numpy as np

from phs_milvus.client.encoder import Encoder
from phs_milvus.contract.errors import DeadlineExceeded, EncoderBusy, EncoderUnavailable, PhsError

_PAUSE = 0.5


def answers_again(encoder: Encoder) -> bool:
    """Whether the server encodes a harmless picture within twice the encoder's timeout.

    That is the time which a supervisor may take to start the server again.
    """
    harmless = np.zeros((8, 8, 3), np.uint8)
    until = time.monotonic() + 2 * encoder.timeout
    while True:
        try:
            encoder.encode(harmless)
            return True
        except (EncoderUnavailable, EncoderBusy, DeadlineExceeded):
            if time.monotonic() > until:
                return False
            time.sleep(_PAUSE)
        except PhsError:
            return False
