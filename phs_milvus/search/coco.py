"""Located boxes as a COCO file, which annotation tools and evaluation scripts read (https://cocodataset.org)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from phs_milvus.contract.errors import InvalidInput, reason_of, shown
from phs_milvus.search.hits import Hit

_CATEGORY = {"id": 1, "name": "query"}


def boxes_as_coco(hits: Sequence[Hit]) -> dict[str, Any]:
    """One image for each hit that was located, in their order, and one annotation for each box, with its score.

    Boxes are x, y, width, height in pixels of the upright image.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for hit in hits:
        if hit.location is None:
            continue
        size = {"width": hit.location.width, "height": hit.location.height}
        images.append({"id": len(images) + 1, "file_name": str(hit.id), **size})
        for (x0, y0, x1, y1), score in hit.boxes:
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": len(images),
                    "category_id": _CATEGORY["id"],
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "area": (x1 - x0) * (y1 - y0),
                    "iscrowd": 0,
                    "score": score,
                }
            )
    return {"images": images, "annotations": annotations, "categories": [_CATEGORY]}


def is_boxes(path: Path) -> bool:
    """Whether a file was written by `save_boxes`, and so may be written again."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(found, dict) and found.get("categories") == [_CATEGORY]


def save_boxes(hits: Sequence[Hit], path: str | Path) -> None:
    """Writes `boxes_as_coco`.

    Raises:
        InvalidInput: the file cannot be written.
    """
    try:
        Path(path).write_text(json.dumps(boxes_as_coco(hits), indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise InvalidInput(f"cannot write {shown(path)}: {reason_of(error)}", "save_boxes") from error
