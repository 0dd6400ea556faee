"""The plugin as FiftyOne loads and runs it, over its own MongoDB, a real server and a real Milvus.

FiftyOne is in an environment of its own: tests/fiftyone_app.sh.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import pytest
from PIL import Image

from phs_milvus import Box, Encoder, FocusedCollection, FocusedSearch, Mask, Query, Row, connect
from phs_milvus.client.requests import Outputs
from phs_milvus.milvus.connection import close
from phs_milvus.pointing.prompts import to_array
from tests.integrations.support import expected
from tests.servers import REPO

if find_spec("fiftyone") is None:
    pytest.skip("FiftyOne is not installed here; tests/fiftyone_app.sh installs it", allow_module_level=True)
# FiftyOne reads these when it is imported, and its plugins when it first looks for them.
PLACES = Path(tempfile.gettempdir()) / f"phs-fiftyone-{crc32(bytes(REPO)):x}"
shutil.rmtree(PLACES, ignore_errors=True)
(PLACES / "plugins").mkdir(parents=True)
(PLACES / "plugins/phs_milvus").symlink_to(REPO / "phs_milvus/integrations/fiftyone")
os.environ |= {"FIFTYONE_DO_NOT_TRACK": "true", "FIFTYONE_DATABASE_VALIDATION": "false"}
os.environ |= {"FIFTYONE_DATABASE_DIR": str(PLACES / "db"), "FIFTYONE_PLUGINS_DIR": str(PLACES / "plugins")}

import fiftyone as fo  # noqa: E402
import fiftyone.operators as foo  # noqa: E402
from fiftyone.operators.executor import ExecutionContext, ExecutionError  # noqa: E402

from phs_milvus.integrations.fiftyone import prompt_of  # noqa: E402

OPERATOR = "@phs-milvus/point/find_selected"


@pytest.fixture(scope="module")
def dataset(photos: list[Path]) -> Iterator[Any]:
    """The photos and one more that Milvus does not have, with one label of each kind on the fourth."""
    dataset = fo.Dataset("photos-of-a-test", overwrite=True)
    samples = [fo.Sample(str(path)) for path in photos]
    box = [20 / 160, 10 / 120, 70 / 160, 60 / 120]
    outline = [[(0.1, 0.1), (0.5, 0.1), (0.5, 0.6)]]
    samples[3]["boxes"] = fo.Detections(
        detections=[fo.Detection(label="other", bounding_box=[0, 0, 1, 1]), fo.Detection(bounding_box=box)]
    )
    samples[3]["one"] = fo.Detection(bounding_box=box, mask=np.eye(12, dtype=bool))
    samples[3]["outline"] = fo.Polyline(points=outline, closed=True, filled=True)
    samples[3]["points"] = fo.Keypoint(points=[(0.25, 0.5), (float("nan"), float("nan"))])
    samples[3]["kind"] = fo.Classification(label="bicycle")
    samples[5]["boxes"] = fo.Detections(detections=[fo.Detection(bounding_box=[0.5, 0.5, 0.4, 0.4])])
    dataset.add_samples(samples)
    yield dataset
    dataset.delete()


@pytest.fixture
def find(
    dataset: Any, search: FocusedSearch, milvus_uri: str, address: str, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Any]:
    monkeypatch.setenv("PHS_ENCODER", address)
    monkeypatch.setenv("PHS_MILVUS", milvus_uri)

    def run(*labels: tuple[str, int, int], selected: list[str] | None = None, **params: Any) -> Any:
        """Runs the operator with labels selected: (field, number of the sample, number of the label there)."""
        samples = list(dataset)
        chosen = []
        for field, number, place in labels:
            value = samples[number][field]
            label = value.detections[place] if isinstance(value, fo.Detections) else value
            chosen.append({"label_id": label.id, "sample_id": samples[number].id, "field": field})
        context = {"dataset": dataset, "selected_labels": chosen, "selected": selected or []}
        return foo.execute_operator(OPERATOR, context, params={"limit": 7, **params})

    return run


def names(dataset: Any, found: Any) -> list[str]:
    view = dataset.select(found.result["samples"], ordered=True)
    return [Path(path).name for path in view.values("filepath")]


def shown(found: Any) -> list[str]:
    """The samples of the view that the App is told to show."""
    requests = {one["operator_uri"]: one["params"] for one in found.executor.to_json()["requests"]}
    (stage,) = requests["set_view"]["view"]
    arguments = dict(stage["kwargs"])
    assert stage["_cls"] == "fiftyone.core.stages.Select" and arguments["ordered"] is True
    return list(arguments["sample_ids"])


def test_a_selected_box_gives_the_view_of_its_search(
    dataset: Any, search: FocusedSearch, photos: list[Path], find: Callable[..., Any]
) -> None:
    found = find(("boxes", 3, 1))
    assert names(dataset, found) == expected(search, Query(photos[3], Box(20, 10, 90, 70)))[0][:7]
    assert shown(found) == found.result["samples"] and found.result["elsewhere"] == 0
    named = find(("boxes", 3, 1), filter=f'id == "{photos[5].name}"')
    assert names(dataset, named) == [photos[5].name]


def test_several_labels_are_several_examples(
    dataset: Any, search: FocusedSearch, photos: list[Path], find: Callable[..., Any]
) -> None:
    result = search.search([Query(photos[3], Box(20, 10, 90, 70)), Query(photos[5], Box(80, 60, 144, 108))], limit=7)
    assert names(dataset, find(("boxes", 3, 1), ("boxes", 5, 0))) == [str(hit.id) for hit in result]


def test_a_sample_without_labels_is_looked_at_as_a_whole(
    dataset: Any, search: FocusedSearch, photos: list[Path], find: Callable[..., Any]
) -> None:
    found = find(selected=[list(dataset)[6].id])
    assert names(dataset, found) == expected(search, Query(photos[6]))[0][:7]


def test_labels_become_prompts(dataset: Any, photos: list[Path]) -> None:
    sample = list(dataset)[3]
    assert prompt_of(sample["boxes"].detections[1], 160, 120) == Box(20, 10, 90, 70)
    mask = prompt_of(sample["one"], 160, 120)
    assert isinstance(mask, Mask)
    inside = to_array(mask, 160, 120)
    eye = Image.fromarray(np.eye(12, dtype=np.uint8)).resize((70, 60), Image.Resampling.NEAREST)
    assert np.array_equal(inside[10:70, 20:90], np.asarray(eye) > 0) and inside.sum() == inside[10:70, 20:90].sum()
    outline = to_array(prompt_of(sample["outline"], 160, 120), 160, 120)
    assert outline[15, 50] and not outline[60, 20] and not outline[100, 100]
    (point,) = prompt_of(sample["points"], 160, 120)
    assert (point.x, point.y) == (40, 60)


def test_what_fails_says_so_in_the_app(
    dataset: Any, search: FocusedSearch, encoder: Encoder, find: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for arguments, text in (
        ({}, "select a label, or a sample"),
        ({"labels": [("kind", 3, 0)]}, "a Classification is no part of a picture"),
        ({"labels": [("boxes", 3, 1)], "collection": "nothing"}, "there is no collection 'nothing'"),
    ):
        with pytest.raises(ExecutionError, match=text):
            find(*arguments.pop("labels", ()), **arguments)
    monkeypatch.setenv("PHS_ENCODER", "127.0.0.1:1")
    with pytest.raises(ExecutionError, match="127.0.0.1:1"):
        find(("boxes", 3, 1))


def test_rows_belong_to_samples_by_their_id_too(
    dataset: Any, photos: list[Path], encoder: Encoder, milvus_uri: str, find: Callable[..., Any]
) -> None:
    """As in collections that FiftyOne's own Milvus backend fills; rows of no sample are counted."""
    client = connect(milvus_uri)
    try:
        collection = FocusedCollection.create(client, "by_sample", encoder.info, overwrite=True)
        ids = [*dataset.values("id")[:4], "no sample of this dataset"]
        encodings = encoder.encode_many(photos[:5], outputs=Outputs(state=True))
        collection.insert([Row(row_id, one.embedding, one.state) for row_id, one in zip(ids, encodings, strict=True)])
    finally:
        close(client)
    found = find(("boxes", 3, 1), collection="by_sample")
    assert set(found.result["samples"]) == set(ids[:4]) and found.result["samples"][0] == ids[3]
    assert found.result["elsewhere"] == 1


def test_the_form_says_what_is_missing(dataset: Any) -> None:
    """What the App shows before anything runs."""
    operator = foo.get_operator(OPERATOR)
    for selected, invalid in (([], True), ([dataset.first().id], False)):
        context = ExecutionContext({"dataset_name": dataset.name, "selected": selected})
        form = operator.resolve_input(context).type
        assert {"collection", "limit", "filter"} <= set(form.properties)
        assert any(getattr(one, "invalid", False) for one in form.properties.values()) is invalid
