"""Presets, tuning and the commands, run for real on the small dataset."""

from __future__ import annotations

import csv
import json
import re
import shutil
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from phs_milvus.cli import main
from phs_milvus.client.encoder import Encoder
from phs_milvus.contract.errors import InvalidInput
from phs_milvus.contract.types import Focus
from phs_milvus.evaluation import Bench, Focused, Outcome, object_queries
from phs_milvus.evaluation.controls import best_fixed_heads
from phs_milvus.evaluation.experiments import PRESETS, Study
from phs_milvus.evaluation.experiments.small_models import attention_correlation, head_cka
from phs_milvus.evaluation.tune import _candidates, cross_validated, recommend, tune
from phs_milvus.search.settings import SearchSettings, read_settings


@pytest.fixture
def study(bench: Bench) -> Study:
    return Study(bench, object_queries(bench.dataset), ("box", "point"))


def test_table1(study: Study) -> None:
    box, classes, point = PRESETS["table1"].run(study)
    rows = {row["method"]: row for row in box.rows}
    assert len(rows) == len(box.rows) == len(point.rows) > 20
    assert rows["whole image"]["difference"] == 0
    assert all(0 <= row["mAP"] <= 1 and row["95% low"] <= row["difference"] <= row["95% high"] for row in box.rows)
    # Stage two looks at every image here, so that two-stage is exhaustive.
    assert rows["PHS h=1, two-stage K=200"]["mAP"] == pytest.approx(rows["PHS h=1, Query-DB"]["mAP"], abs=0.01)
    assert [row["class"] for row in classes.rows] == ["blue", "green", "red"]


def test_heads(study: Study) -> None:
    (section,) = PRESETS["heads"].run(study)
    last = [row for row in section.rows if row["heads"] == 4]
    # All heads kept is whole-image search, however they are scaled or chosen.
    assert all(abs(row["difference"]) < 1e-9 for row in last)
    assert {row["heads"] for row in section.rows} == {1, 2, 3, 4}


def test_robustness(bench: Bench) -> None:
    few = object_queries(bench.dataset)[::3]  # many conditions, each encoded anew
    choice, *sections = PRESETS["robustness"].run(Study(bench, few, ("box", "point")))
    assert len(sections) == 4
    held_out, *settings = choice.rows
    assert held_out["focus"] == "chosen on the other folds"
    assert sum(row["folds that choose it"] for row in settings) == held_out["folds that choose it"] == 5
    # What is chosen without peeking is no better than the best that peeking finds.
    assert held_out["mean"] <= settings[0]["mean"] + 1e-9
    assert all(" ± " in row["clicks, difference ± SE"] for row in choice.rows)
    for section in sections:
        whole = [value for name, value in section.rows[0].items() if isinstance(value, float)]
        assert section.rows[0]["method"] == "whole image" and len(set(whole)) == 1
        assert any(len({v for v in row.values() if isinstance(v, float)}) > 1 for row in section.rows[1:])


def test_recall(study: Study) -> None:
    (section,) = PRESETS["recall"].run(study)
    everything = [row for row in section.rows if row["candidates K"] == 50]
    assert everything and all(row["recall of exhaustive top 100"] > 0.999 for row in everything)


def test_overhead(study: Study) -> None:
    latency, storage = PRESETS["overhead"].run(study)
    rows = {row["method"]: row for row in latency.rows}
    for row in latency.rows:
        assert row["per second"] == pytest.approx(1000 / row["median ms"])
        assert row["p90 ms"] == "" or row["p90 ms"] >= row["median ms"]
    in_bulk = rows["encode one image in bulk"]["median ms"]
    assert rows["Query-DB of 1000 candidates, re-encoded"]["median ms"] == pytest.approx(1000 * in_bulk)
    # Bytes: an embedding, an embedding and a state in base64, and an embedding for each choice of one of four heads.
    assert [row["bytes per image"] for row in storage.rows] == [192, 192 + 256, 4 * 192]


def test_small_models(study: Study) -> None:
    summary, pairs, gains = PRESETS["small-models"].run(study)
    (facts,) = summary.rows
    assert (facts["heads"], facts["h_on"]) == (4, study.bench.info.default_heads)
    assert [row["heads"] for row in pairs.rows] == [f"{a} and {b}" for a, b in combinations(range(4), 2)]
    assert facts["mean CKA"] == pytest.approx(np.mean([row["CKA of outputs"] for row in pairs.rows]))
    correlations = [row["correlation of attention"] for row in pairs.rows]
    assert facts["mean attention correlation"] == pytest.approx(np.mean(correlations))
    assert 0 < facts["attention on prompt, mean head"] < facts["attention on prompt, best head"] < 1
    assert 1 / 4 <= facts["most frequent best head"] <= 1
    # All heads kept is whole-image search.
    assert [row["heads"] for row in gains.rows] == [1, 2, 3, 4] and abs(gains.rows[-1]["difference"]) < 1e-9
    assert any(row["difference"] for row in gains.rows[:-1])


def test_cka_by_definition() -> None:
    rng = np.random.default_rng(0)
    first = rng.normal(size=(30, 5))
    rotation, _ = np.linalg.qr(rng.normal(size=(5, 5)))
    other = rng.normal(size=(30, 5))
    states = np.zeros((30, 2, 15), np.float16)
    states[:, 1] = np.concatenate([first, 2 * first @ rotation + 3, other], axis=1)
    cka = head_cka(states, 3)
    assert cka[0, 1] == pytest.approx(1, abs=1e-4) and np.allclose(np.diag(cka), 1)
    x, y = (part.astype(np.float16).astype(float) for part in (first, other))
    gram_x, gram_y = ((part - part.mean(0)) @ (part - part.mean(0)).T for part in (x, y))
    expected = (gram_x * gram_y).sum() / np.sqrt((gram_x**2).sum() * (gram_y**2).sum())
    assert cka[0, 2] == pytest.approx(expected)


def test_attention_correlation_by_definition() -> None:
    maps = np.random.default_rng(0).random((7, 2, 9)).astype(np.float32)
    expected = np.mean([np.corrcoef(image)[0, 1] for image in maps])
    assert attention_correlation(maps)[0, 1] == pytest.approx(expected, abs=1e-6)


def test_best_fixed_heads_are_chosen_on_other_folds(study: Study) -> None:
    from phs_milvus.evaluation import FixedHeads
    from phs_milvus.evaluation.measures import evaluate, folds

    outcome = best_fixed_heads(study.bench, study.pointed, 2, "mAP")
    every = [evaluate(FixedHeads(kept), study.bench, study.pointed) for kept in combinations(range(4), 2)]
    values = np.stack([one.values["mAP"] for one in every])
    parts = folds(study.pointed.images)
    for query in range(len(study.pointed)):
        others = parts != parts[query]
        assert outcome.values["mAP"][query] == values[values[:, others].mean(axis=1).argmax(), query]


# --- tuning -----------------------------------------------------------------------------------------------------------


def outcomes(*values: list[float]) -> list[Outcome]:
    images = np.arange(len(values[0]))
    return [Outcome(str(n), {"MP@100": np.array(v)}, ("a",) * len(images), images) for n, v in enumerate(values)]


def test_cross_validation_does_not_peek() -> None:
    """On noise, the best of many settings looks good by chance; the cross-validated quality does not."""
    noise = np.random.default_rng(0).normal(0.5, 0.1, (100, 400))
    measured = outcomes(*noise.tolist())
    best = max(one.mean("MP@100") for one in measured)
    assert best > 0.51
    assert abs(cross_validated(measured, "MP@100").mean() - 0.5) < 0.01


def test_the_cheapest_within_one_standard_error_is_recommended() -> None:
    rng = np.random.default_rng(0)
    base = rng.normal(0.5, 0.1, 100)
    noise = rng.normal(0, 0.05, 100)
    noise -= noise.mean()
    best, close, worse = base + 0.101, base + 0.1 + noise, base
    assert recommend(outcomes(best, close, worse), [3.0, 2.0, 1.0], "MP@100") == 1
    assert recommend(outcomes(best, close, worse), [3.0, 3.0, 1.0], "MP@100") == 0
    assert recommend(outcomes(best, worse), [3.0, 1.0], "MP@100") == 0


def test_tune(study: Study) -> None:
    choice = tune(
        study,
        [
            Focused(Focus("all"), "ann"),
            Focused(Focus.paper(1)),
            Focused(Focus(2), "blend"),
            Focused(Focus("all", zoom=1.25), "ann"),
            Focused(Focus(1, zoom=(0.0, 2.0)), "blend"),
        ],
    )
    assert [row["recommended"] for row in choice.rows].count("yes") == 1
    qualities = [row["mAP"] for row in choice.rows]
    assert qualities == sorted(qualities, reverse=True) and choice.quality <= qualities[0] + 1e-9
    # All 50 images are enough, but fewer than search takes by itself.
    assert choice.candidates is None and [row["candidates K"] for row in choice.candidate_rows] == [50]
    assert choice.settings(study).candidates is None


def test_candidates_at_the_default_or_above_are_kept(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("phs_milvus.evaluation.tune._FEWEST_CANDIDATES", 50)
    choice = tune(study, [Focused(Focus.paper(4)), Focused(Focus.paper(1))])
    assert choice.candidates == choice.settings(study).candidates == 50


@pytest.mark.parametrize(
    ("qualities", "candidates"),
    [
        ((0.80, 0.85, 0.90, 0.95), 1000),  # none is enough: the deepest
        ((0.80, 0.85, 1.00, 1.00), 500),
        ((1.00, 0.85, 1.00, 1.00), 500),  # enough from there on, not by luck
        ((1.00, 1.00, 1.00, 1.00), None),  # fewer than search takes by itself
    ],
)
def test_candidates_are_as_few_as_are_enough(qualities: tuple[float, ...], candidates: int | None) -> None:
    noise = np.random.default_rng(0).normal(0, 0.01, 200).tolist()

    def measure(methods: list[object]) -> list[Outcome]:
        return outcomes(*([quality + one for one in noise] for quality in ([1.0] if len(methods) == 1 else qualities)))

    study = SimpleNamespace(measure=measure, bench=SimpleNamespace(states=range(5000)), metric="MP@100", seed=0)
    rows, enough = _candidates(study, Focused(Focus.paper(1)))
    assert [row["candidates K"] for row in rows] == [100, 200, 500, 1000] and enough == candidates


# --- settings and commands --------------------------------------------------------------------------------------------


def test_settings_round_trip(tmp_path: Path) -> None:
    from dataclasses import asdict

    settings = SearchSettings(Focus(2, attention_shift=0.5, zoom=(0.0, 2.0)), 500, "f" * 64, {"MP@100": 0.5}, "ann")
    path = tmp_path / "focus.json"
    path.write_text(json.dumps(asdict(settings)))
    assert read_settings(path) == settings
    for text, complaint in (
        ("{", "is not a settings file"),
        ("[]", "is not a settings file"),
        ('{"focus": {"roi": 2}}', "attention_shift must be 0 to 1"),
        ('{"focus": {"heads": "two"}}', "heads_on must be a whole number"),
        ('{"candidates": "many"}', "candidates must be a whole number"),
        ('{"candidats": 3}', "is not a settings file"),
    ):
        path.write_text(text)
        with pytest.raises(InvalidInput, match=complaint):
            read_settings(path)


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as done:
        main([str(argument) for argument in arguments])
    return int(done.value.code or 0)


def test_eval_command_writes_a_folder(labels: Path, vit_encoder: Encoder, tmp_path: Path, capsys) -> None:
    out = tmp_path / "report"
    place = ("--encoder", vit_encoder.address, "--cache", tmp_path / "cache", "--limit", 20)
    assert run("eval", labels, "--preset", "heads", "--out", out, *place) == 0
    text = (out / "README.md").read_text()
    assert "20 images" in text and vit_encoder.info.fingerprint[:12] in text
    assert re.search(r"^\| +heads \| method +\|", text, re.MULTILINE)
    results = json.loads((out / "results.json").read_text())
    (table,) = out.glob("*.csv")
    with table.open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(results["sections"][0]["rows"])
    assert "PHS, Query-DB" in capsys.readouterr().out
    assert run("eval", labels, "--prompt", "box,lasso", *place) == 1
    assert "lasso is not one of" in capsys.readouterr().err
    assert run("eval", labels.parent / "none.csv", *place) == 1


def test_bad_images_are_left_out_and_counted(labels: Path, vit_encoder: Encoder, tmp_path: Path, capsys) -> None:
    folder = tmp_path / "images"
    shutil.copytree(labels.parent, folder)
    # A header without pixels, and no image at all: the server finds the first, the client the second.
    whole = (folder / "03.png").read_bytes()
    (folder / "03.png").write_bytes(whole[: len(whole) // 2])
    (folder / "05.png").write_bytes(b"not an image")
    place = ("--encoder", vit_encoder.address, "--cache", tmp_path / "cache", "--limit", 20)
    for _ in range(2):
        assert run("eval", folder / "labels.csv", "--preset", "heads", "--out", tmp_path / "report", *place) == 0
        said = capsys.readouterr().err
        assert "03.png" in said and "05.png" in said
        text = (tmp_path / "report/README.md").read_text()
        assert "18 images" in text and str(tmp_path) not in text
        named = re.search(r"left out: 2 \((.*)\) not readable", text)
        assert named and sorted(named[1].split(", ")) == ["03.png", "05.png"]


def test_tune_then_search_with_its_settings(
    labels: Path, vit_encoder: Encoder, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("phs_milvus.evaluation.tune._ZOOMS", (0.0, 1.25))
    settings, server = tmp_path / "focus.json", ("--encoder", vit_encoder.address)
    assert run("tune", labels, "--out", settings, "--cache", tmp_path / "cache", "--limit", 20, *server) == 0
    assert "recommended: --heads " in capsys.readouterr().out
    chosen = read_settings(settings)
    assert chosen.fingerprint == vit_encoder.info.fingerprint and chosen.candidates is None
    milvus = ("--milvus", tmp_path / "m.db", *server)
    assert run("ingest", labels.parent, *milvus) == 0
    capsys.readouterr()
    search = ("search", labels.parent / "00.png", "--box", "2,2,30,30", "--json", *milvus)
    assert run(*search, "--settings", settings) == 0
    found = json.loads(capsys.readouterr().out)
    focus = chosen.focus
    ann_heads = focus.heads_on if focus.ann_heads is None else focus.ann_heads
    flags = ["--heads", focus.heads_on, "--ann-heads", ann_heads, "--score", chosen.score]
    flags += ["--roi", focus.attention_shift, "--zoom", focus.zoom]
    assert run(*search, *flags) == 0
    assert json.loads(capsys.readouterr().out) == found
    assert run(*search, "--settings", settings, "--focus", "robust") == 1
    assert "exclude each other" in capsys.readouterr().err
    assert run(*search, "--focus", "robust", "--zoom", 0) == 0
    settings.write_text(settings.read_text().replace(chosen.fingerprint, "0" * 64))
    assert run(*search, "--settings", settings) == 1
    assert "was tuned for the model" in capsys.readouterr().err


def test_several_models_share_one_report(labels: Path, vit_encoder: Encoder, encoder: Encoder, tmp_path: Path) -> None:
    both = ("--encoder", vit_encoder.address, "--encoder", encoder.address, "--cache", tmp_path / "cache")
    assert run("eval", labels, "--preset", "small-models", "--limit", 12, "--out", tmp_path / "r", *both) == 0
    results = json.loads((tmp_path / "r/results.json").read_text())
    assert len({section["heading"] for section in results["sections"]}) == len(results["sections"]) == 7
    together = results["sections"][-1]["rows"]
    by_heads = sorted((2, 5), key=lambda index: results["sections"][index - 2]["rows"][0]["heads"])
    for row, gains in zip(together, by_heads, strict=True):
        of_one = results["sections"][gains]["rows"]
        assert row["heads"] == len(of_one)
        assert row["gain at h_on"] == of_one[row["h_on"] - 1]["difference"]
        assert row["its gain"] == max(one["difference"] for one in of_one)
    assert (tmp_path / "r/all-models-head-count-against-gain.png").is_file()
    assert run("eval", labels, "--preset", "overhead", "--limit", 12, "--out", tmp_path / "o", *both) == 0
    results = json.loads((tmp_path / "o/results.json").read_text())
    first, second, together = (results["sections"][i]["rows"] for i in (1, 3, 5))
    for row, one, other in zip(together, first, second, strict=True):
        assert list(row.values()) == [one["method"], one["bytes per image"], other["bytes per image"]]
    assert len(list((tmp_path / "o").glob("*.png"))) == 6
