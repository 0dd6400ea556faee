"""How long a prompt takes to put on a picture, and a bound on it: a few kilobytes can ask for minutes."""

from __future__ import annotations

import numpy as np

from phs_milvus.contract.errors import PromptError
from phs_milvus.pointing.prompts import Box, Mask, Point, Polygon, Prompt

# In pixels painted, of which a core paints about 100 million a second. An edge crosses a row as slowly as 25 pixels.
_MOST_PIXELS = 10**9
_PIXELS_A_CROSSING = 25


def check_effort(prompt: Prompt | None, width: int, height: int) -> None:
    """Refuses what would keep a core busy for longer than a search may.

    Args:
        prompt: one, or a list of them, as `prompt_of` returns it.
        width, height: pixels of the upright picture.

    Raises:
        PromptError: too many large shapes, or outlines that run to and fro, on a picture of this size.
    """
    members = prompt if isinstance(prompt, list) else [] if prompt is None else [prompt]
    pixels = sum(_pixels(member, width, height) for member in members)
    if pixels > _MOST_PIXELS:
        raise PromptError(
            f"{len(members)} shapes on {width} x {height} pixels take too long to draw; send fewer or smaller ones, "
            "fewer corners, or a smaller picture",
            "prompt",
        )


def _pixels(prompt: Prompt, width: int, height: int) -> float:
    if isinstance(prompt, Mask):
        return float(width) * height
    if isinstance(prompt, Point):
        reach = prompt.radius or 0.0
        corners = [(prompt.x - reach, prompt.y - reach), (prompt.x + reach, prompt.y + reach)]
    elif isinstance(prompt, Box):
        corners = [(prompt.x0, prompt.y0), (prompt.x1, prompt.y1)]
    else:
        assert isinstance(prompt, Polygon), prompt
        corners = list(prompt.points)
    inside = np.clip(np.asarray(corners, np.float64), 0, (width, height))
    across, down = np.ptp(inside, axis=0).tolist()
    crossings = np.abs(inside[:, 1] - np.roll(inside[:, 1], 1)).sum() if isinstance(prompt, Polygon) else 0
    return float(across * down + _PIXELS_A_CROSSING * crossings)
