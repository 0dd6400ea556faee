"""Whether boxes as a whole make sense: what is one slip in one record is a misread format in half of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from phs_milvus.contract.errors import InvalidInput
from phs_milvus.evaluation.datasets.model import Corners
from phs_milvus.evaluation.datasets.records import Findings

# Of all boxes, the share that may be wrong before the reading itself is in doubt, and the fewest that count.
_DOUBTFUL = 0.2
_FEWEST = 3

# What files also hold under the names of corners, or of x, y, width and height: the box as it would then be.
_READINGS: dict[str, Callable[[float, float, float, float], Corners]] = {
    "with x and y swapped": lambda x0, y0, x1, y1: (y0, x0, y1, x1),
    "as x0, y0, x1, y1 rather than x, y, width, height": lambda x0, y0, x1, y1: (x0, y0, x1 - x0, y1 - y0),
    "as centre and size": lambda x0, y0, x1, y1: (x0 - (x1 - x0) / 2, y0 - (y1 - y0) / 2, (x0 + x1) / 2, (y0 + y1) / 2),
}


@dataclass(frozen=True)
class Placed:
    """A box in pixels of an upright image of `size`, before it is clipped."""

    where: str
    box: Corners
    size: tuple[int, int]


def check_plausible(placed: Sequence[Placed], findings: Findings, *, shares: bool) -> None:
    """Raises InvalidInput where many boxes are no boxes of their images, with the reading under which they would be.

    Args:
        shares: the boxes were declared as shares or percent of the image.
    """
    total = len(placed) + len(findings.first_pixel) + findings.inverted
    if findings.first_pixel and 2 * len(findings.first_pixel) >= total:
        raise InvalidInput(
            f"{len(findings.first_pixel)} of {total} boxes lie within the first pixel, so they are hardly in pixels; "
            f"the first: {findings.first_pixel[0]}",
            "dataset",
        )
    if findings.inverted >= _FEWEST and findings.inverted > _DOUBTFUL * total:
        raise InvalidInput(
            f"{findings.inverted} of {total} boxes have x1 < x0 or y1 < y0: are they x, y, width, height, or in "
            f"another order? The first: {next((text for text in findings.skipped if 'x0 < x1' in text), '')}",
            "dataset",
        )
    astray = [one for one in placed if not _fits(one.box, one.size)]
    if len(astray) < _FEWEST or len(astray) <= _DOUBTFUL * len(placed):
        return
    better = [name for name, read in _READINGS.items() if all(_fits(read(*one.box), one.size) for one in placed)]
    if better or 2 * len(astray) > len(placed):
        first = astray[0]
        shown = ", ".join(f"{side:g}" for side in first.box)
        reading = f"; read {better[0]} all would fit" if better and not shares else ""
        raise InvalidInput(
            f"{len(astray)} of {len(placed)} boxes reach beyond their images{reading}; the first: {first.where}, "
            f"{shown} in a {first.size[0]}x{first.size[1]} image. Correct or export them again",
            "dataset",
        )


def _fits(box: Corners, size: tuple[int, int]) -> bool:
    """Inside the image but for the rounding of tools."""
    x0, y0, x1, y1 = box
    slack_x, slack_y = max(2.0, 0.02 * size[0]), max(2.0, 0.02 * size[1])
    return (
        x0 < x1
        and y0 < y1
        and -slack_x <= x0
        and x1 <= size[0] + slack_x
        and -slack_y <= y0
        and y1 <= size[1] + slack_y
    )
