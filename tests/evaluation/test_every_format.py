"""What holds for every format, on the same labelled set as each tool writes it (exports.py)."""

from __future__ import annotations

from pathlib import Path

import pytest

from phs_milvus.contract.errors import InvalidInput
from phs_milvus.evaluation.datasets import Dataset, load
from tests.evaluation.exports import BOXES, IN_PIXELS, SIZE, SIZED, WRITERS, Box, pictures

pytestmark = pytest.mark.filterwarnings("ignore::phs_milvus.evaluation.datasets.DatasetWarning")

NAMES = [f"{number}.jpg" for number in range(1, 7)]
EVERY = pytest.mark.parametrize("writer", list(WRITERS))
PIXELS = pytest.mark.parametrize("writer", IN_PIXELS)


def boxes_of(dataset: Dataset) -> list[list[tuple[str, tuple[float, ...]]]]:
    return [sorted((entry.label, entry.box) for entry in image.instances) for image in dataset.images]


def expected(boxes: tuple[Box, ...] = BOXES) -> list[tuple[str, tuple[float, ...]]]:
    return sorted((label, tuple(map(float, box))) for label, *box in boxes)


@EVERY
def test_it_is_told_by_its_looks_and_read(writer: str, tmp_path: Path) -> None:
    pictures(tmp_path, NAMES)
    dataset = load(WRITERS[writer](tmp_path, NAMES, SIZE, BOXES))
    assert [image.path.name for image in dataset.images] == NAMES
    assert boxes_of(dataset) == [expected()] * 6
    assert not dataset.remarks and not dataset.unreadable


@EVERY
def test_images_elsewhere_are_found_where_the_user_says(writer: str, tmp_path: Path) -> None:
    (tmp_path / "labels").mkdir()
    pictures(tmp_path / "pictures", NAMES)
    path = WRITERS[writer](tmp_path / "labels", NAMES, SIZE, BOXES)
    assert boxes_of(load(path, images=tmp_path / "pictures")) == [expected()] * 6


@EVERY
def test_without_files_the_message_says_where_the_first_was_looked_for(writer: str, tmp_path: Path) -> None:
    path = WRITERS[writer](tmp_path, NAMES, SIZE, BOXES)
    with pytest.raises(InvalidInput, match=r"6 images are annotated and none of their files is there.*at.*1"):
        load(path)


@EVERY
def test_some_missing_files_are_named(writer: str, tmp_path: Path) -> None:
    pictures(tmp_path, NAMES[:4])
    dataset = load(WRITERS[writer](tmp_path, NAMES, SIZE, BOXES))
    assert len(dataset.images) == 4 and [Path(name).stem[-1] for name in dataset.missing] == ["5", "6"]
    assert "2 (" in dataset.remarks[0]


@EVERY
def test_one_file_is_one_image_under_two_names(writer: str, tmp_path: Path) -> None:
    """7.jpg is a link to 1.jpg; its objects are put with those of 1.jpg."""
    pictures(tmp_path, NAMES)
    (tmp_path / "7.jpg").symlink_to("1.jpg")
    dataset = load(WRITERS[writer](tmp_path, [*NAMES, "7.jpg"], SIZE, BOXES))
    assert boxes_of(dataset) == [expected()] * 6
    assert [note for note in dataset.notes if note.startswith("1 record(s) merged with another one of the same image")]


@pytest.mark.parametrize("writer", ["coco", "csv", "jsonl", "cvat", "fiftyone", "label-studio-min", "visual-genome"])
def test_a_file_described_twice_is_one_image(writer: str, tmp_path: Path) -> None:
    pictures(tmp_path, NAMES)
    again = "1.jpg" if writer == "visual-genome" else "./1.jpg"
    dataset = load(WRITERS[writer](tmp_path, [*NAMES, again], SIZE, BOXES))
    assert boxes_of(dataset) == [expected()] * 6


@pytest.mark.parametrize("writer", SIZED)
def test_labels_of_another_size_are_scaled_and_said(writer: str, tmp_path: Path) -> None:
    pictures(tmp_path, NAMES, (320, 240))
    dataset = load(WRITERS[writer](tmp_path, NAMES, SIZE, BOXES))
    doubled = tuple((label, *(2 * side for side in box)) for label, *box in BOXES)
    assert boxes_of(dataset) == [expected(doubled)] * 6
    if writer in IN_PIXELS:
        (note,) = dataset.notes
        assert note.startswith("6 image(s) have another size") and "160x120, the file is 320x240" in note


@pytest.mark.parametrize("writer", SIZED)
def test_labels_of_another_shape_are_left_out_with_both_sizes(writer: str, tmp_path: Path) -> None:
    pictures(tmp_path, NAMES[:5])
    pictures(tmp_path, NAMES[5:], (160, 160))
    dataset = load(WRITERS[writer](tmp_path, NAMES, SIZE, BOXES))
    assert boxes_of(dataset) == [expected()] * 5
    (problem,) = dataset.unreadable.values()
    assert "6.jpg: its labels are for 160x120 and the file is 160x160" in problem
    pictures(tmp_path, NAMES, (160, 160))
    with pytest.raises(InvalidInput, match="none of the 6 images can be used; the first: .*160x120"):
        load(WRITERS[writer](tmp_path, NAMES, SIZE, BOXES))


@pytest.mark.parametrize("writer", SIZED)
def test_a_declared_size_tells_whether_exif_was_applied(writer: str, tmp_path: Path) -> None:
    """Orientation 6 turns the stored 160x120 clockwise: (x, y) goes to (120 - y, x)."""
    pictures(tmp_path, NAMES, SIZE, orientation=6)
    turned = tuple((label, 120 - y1, x0, 120 - y0, x1) for label, x0, y0, x1, y1 in BOXES)
    stored = load(WRITERS[writer](tmp_path, NAMES, SIZE, BOXES))
    assert boxes_of(stored) == [expected(turned)] * 6
    assert any(note.startswith("6 image(s) were labelled before EXIF turned them") for note in stored.notes)
    upright = load(WRITERS[writer](tmp_path, NAMES, (120, 160), turned))
    assert boxes_of(upright) == [expected(turned)] * 6 and not upright.notes


@EVERY
def test_where_nothing_tells_the_photo_is_left_out_until_the_user_does(writer: str, tmp_path: Path) -> None:
    """Orientation 3 turns by 180 degrees, and the size is the same before and after."""
    pictures(tmp_path, NAMES, SIZE, orientation=3)
    path = WRITERS[writer](tmp_path, NAMES, SIZE, BOXES)
    with pytest.raises(InvalidInput, match="none of the 6 images.*EXIF turns it.*--frame stored or --frame upright"):
        load(path)
    assert boxes_of(load(path, frame="upright")) == [expected()] * 6
    turned = tuple((label, 160 - x1, 120 - y1, 160 - x0, 120 - y0) for label, x0, y0, x1, y1 in BOXES)
    assert boxes_of(load(path, frame="stored")) == [expected(turned)] * 6


def test_photos_without_objects_are_in_no_frame(tmp_path: Path) -> None:
    pictures(tmp_path, NAMES[:5])
    pictures(tmp_path, NAMES[5:], SIZE, orientation=3)
    path = WRITERS["csv"](tmp_path, NAMES[:5], SIZE, BOXES)
    path.write_text(f"{path.read_text()}\n6.jpg,,,,,,,")
    dataset = load(path)
    assert boxes_of(dataset) == [*[expected()] * 5, []] and not dataset.remarks


@PIXELS
def test_shares_are_not_taken_for_pixels(writer: str, tmp_path: Path) -> None:
    pictures(tmp_path, NAMES)
    shares = tuple((b[0], b[1] / 160, b[2] / 120, b[3] / 160, b[4] / 120) for b in BOXES)
    if writer == "voc":  # whose writer adds 1
        shares = tuple((b[0], b[1] - 1, b[2] - 1, b[3], b[4]) for b in shares)
    path = WRITERS[writer](tmp_path, NAMES, SIZE, shares)
    with pytest.raises(InvalidInput, match="12 of 12 boxes lie within the first pixel"):
        load(path)
    if writer in ("coco", "csv", "jsonl"):
        assert boxes_of(load(path, boxes="shares")) == [expected()] * 6
    else:
        with pytest.raises(InvalidInput, match="state the unit of their boxes"):
            load(path, boxes="shares")


@PIXELS
def test_x_and_y_swapped_stop_with_the_reading_that_fits(writer: str, tmp_path: Path) -> None:
    pictures(tmp_path, NAMES)
    swapped = tuple((label, y0, x0, y1, x1) for label, x0, y0, x1, y1 in BOXES)
    with pytest.raises(InvalidInput, match="6 of 12 boxes reach beyond their images; read with x and y swapped"):
        load(WRITERS[writer](tmp_path, NAMES, SIZE, swapped))


@pytest.mark.parametrize("writer", ["coco", "voc", "csv", "jsonl", "labelme", "cvat", "visual-genome"])
def test_boxes_partly_outside_are_clipped_and_wholly_outside_skipped(writer: str, tmp_path: Path) -> None:
    pictures(tmp_path, ["7.jpg"])
    odd: tuple[Box, ...] = (("disc", 100, 100, 170, 140), ("sky", 30, -904, 70, -884))
    dataset = load(WRITERS[writer](tmp_path, ["7.jpg"], SIZE, odd))
    assert boxes_of(dataset) == [[("disc", (100, 100, 160, 120))]]
    assert dataset.notes[0].startswith("1 box(es) reach beyond their image and were clipped")
    (problem,) = dataset.skipped
    assert "30, -904, 70, -884 is outside the 160x120 image" in problem


@pytest.mark.parametrize("writer", ["voc", "csv", "jsonl", "cvat"])
def test_inverted_corners_are_skipped_and_many_of_them_stop(writer: str, tmp_path: Path) -> None:
    pictures(tmp_path, NAMES)
    one_bad: tuple[Box, ...] = (*BOXES, *(("disc", n, 30, n + 40, 60) for n in range(1, 9)), ("sky", 95, 20, 60, 70))
    dataset = load(WRITERS[writer](tmp_path, NAMES, SIZE, one_bad))
    assert [len(image.instances) for image in dataset.images] == [10] * 6 and len(dataset.skipped) == 6
    assert "is not a box with x0 < x1 and y0 < y1" in dataset.skipped[0]
    as_width_and_height = tuple((label, x0, y0, x1 - x0, y1 - y0) for label, x0, y0, x1, y1 in BOXES)
    with pytest.raises(InvalidInput, match=r"6 of 12 boxes have x1 < x0 or y1 < y0: are they x, y, width, height"):
        load(WRITERS[writer](tmp_path, NAMES, SIZE, as_width_and_height))


@pytest.mark.parametrize("writer", ["coco", "visual-genome"])
def test_a_negative_side_is_turned_round_and_counted(writer: str, tmp_path: Path) -> None:
    pictures(tmp_path, NAMES)
    drawn_backwards = (BOXES[0], ("sky", 150, 60, 90, 5))
    dataset = load(WRITERS[writer](tmp_path, NAMES, SIZE, drawn_backwards))
    assert boxes_of(dataset) == [expected()] * 6
    assert dataset.notes[0].startswith("6 box(es) have a negative width or height and were turned round")
    off: tuple[Box, ...] = (BOXES[0], ("sky", 20, 60, -35, 5))
    dataset = load(WRITERS[writer](tmp_path, NAMES, SIZE, off))
    assert boxes_of(dataset) == [[("disc", (20, 20, 60, 70))]] * 6
    assert "has a negative side, and turned round" in dataset.skipped[0]


@pytest.mark.parametrize("writer", ["coco", "visual-genome"])
def test_corners_written_as_width_and_height_stop(writer: str, tmp_path: Path) -> None:
    pictures(tmp_path, NAMES)
    corners = tuple((label, x0, y0, x0 + x1, y0 + y1) for label, x0, y0, x1, y1 in BOXES)
    with pytest.raises(InvalidInput, match="read as x0, y0, x1, y1 rather than x, y, width, height all would fit"):
        load(WRITERS[writer](tmp_path, NAMES, SIZE, corners))
