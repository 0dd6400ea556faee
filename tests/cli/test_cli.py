"""What each command does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from phs_milvus.client import environment
from phs_milvus.contract.errors import InvalidInput
from tests.cli.conftest import Run


def test_ingest_search_explain_info(run: Run, photos: list[Path], tmp_path: Path) -> None:
    done = run("ingest", "photos")
    assert done.returncode == 0, done.stderr
    assert "12" in done.stdout

    table = run("search", photos[4], "--box", "20,20,90,100", "--limit", 5, "--save", "hits.png")
    assert table.returncode == 0, table.stderr
    assert len([line for line in table.stdout.splitlines() if "image-" in line]) == 5
    with Image.open(tmp_path / "hits.png") as sheet:
        assert min(sheet.size) > 400
        assert len(sheet.convert("RGB").getcolors(2**24) or []) > 1000

    rows = json.loads(run("search", photos[4], "--point", "60,60", "--json", "--fields", "width,height").stdout)
    assert rows[0]["rank"] == 1
    assert (rows[0]["width"], rows[0]["height"]) == (160, 120)

    stored = json.loads(run("search", photos[4].name, "--stored", "--point", "60,60", "--json").stdout)
    assert [row["id"] for row in stored] == [row["id"] for row in rows]

    union = run("search", photos[4], "--box", "0,0,50,50", "--polygon", "80,80 120,80 100,110", "--no-rerank")
    assert union.returncode == 0, union.stderr

    by_score = {}
    for flags in ((), ("--score", "query_db"), ("--no-rerank",), ("--focus", "paper")):
        done = run("search", photos[4], "--box", "20,20,90,100", "--limit", 12, "--json", *flags)
        by_score[flags] = {row["id"]: row for row in json.loads(done.stdout)}
    for name, row in by_score[()].items():
        assert row["score"] == row["blend_score"] == pytest.approx((row["ann_score"] + row["query_db_score"]) / 2)
        assert by_score["--score", "query_db"][name]["score"] == pytest.approx(row["query_db_score"])
        assert by_score["--no-rerank",][name]["score"] == pytest.approx(row["ann_score"])
    assert all(row["score"] == row["query_db_score"] for row in by_score["--focus", "paper"].values())

    other = photos[5]
    rows = json.loads(
        run(
            *("search", photos[4], "--box", "20,20,90,100", "--like", f"{other}:5,5,60,60", "--exclude-query"),
            *("--unlike", f"{photos[6]}:5,5,60,60", "--min-score", "-0.9", "--ann-heads", 2, "--limit", 12, "--json"),
        ).stdout
    )
    assert {row["id"] for row in rows} == {path.name for path in photos} - {path.name for path in photos[4:7]}

    found = run(
        *("search", photos[4], "--box", "20,20,90,100", "--limit", 3, "--locate", "--boxes", 2, "--json"),
        *("--save-boxes", "boxes.json", "--save", "boxed.png"),
    )
    rows = json.loads(found.stdout)
    assert all(1 <= len(row["boxes"]) <= 2 for row in rows), found.stderr
    coco = json.loads((tmp_path / "boxes.json").read_text())
    assert [image["file_name"] for image in coco["images"]] == [row["id"] for row in rows]
    x, y, width, height = coco["annotations"][0]["bbox"]
    assert [x, y, x + width, y + height] == rows[0]["boxes"][0]["box"] and coco["annotations"][0]["image_id"] == 1
    (tmp_path / "precious.json").write_text('{"mine": 1}')
    for flags in (("--save-boxes", "precious.json"), ("--save-boxes", "photos"), ("--save", "none/hits.png")):
        refused = run("search", photos[4], *flags)
        assert refused.returncode == 1 and flags[0].strip("-").replace("-", "_") in refused.stderr
    assert (tmp_path / "precious.json").read_text() == '{"mine": 1}'
    third = run("search", photos[4], "--box", "20,20,90,100", "--limit", 3, "--localize", 6, "--images", "photos")
    assert "where" in third.stdout and "locate" in third.stderr
    nowhere = run("search", photos[4], "--locate", "--images", "none")
    assert nowhere.returncode == 1 and "images" in nowhere.stderr

    (tmp_path / "focus.json").write_text('{"focus": {"heads": 2}, "candidates": 2}')
    tuned = run("search", photos[4], "--point", "60,60", "--settings", "focus.json", "--limit", 5, "--json")
    assert len(json.loads(tuned.stdout)) == 5, tuned.stderr
    none = run("search", photos[4], "--candidates", 0)
    assert none.returncode == 1 and "candidates" in none.stderr

    heads = run("explain", photos[4], "--box", "20,20,90,100", "--heads", 2, "--save", "heads.png")
    assert heads.returncode == 0, heads.stderr
    assert sum("weight 2.00" in line for line in heads.stdout.splitlines()) == 2
    assert (tmp_path / "heads.png").exists()

    (tmp_path / "scales.json").write_text('{"focus": {"roi": 1, "zoom": [0, 2]}}')
    for flags in (("--zoom", "0,2"), ("--settings", "scales.json")):
        scales = run("explain", photos[4], "--box", "20,20,50,50", *flags, "--json", "--save", "scales.png")
        first, second = json.loads(scales.stdout)
        assert first["region"] == [0, 0, 160, 120] and second["region"] == [5, 5, 65, 65], scales.stderr
    with Image.open(tmp_path / "heads.png") as one, Image.open(tmp_path / "scales.png") as two:
        assert two.height > 1.9 * one.height

    facts = json.loads(run("info").stdout)
    assert facts["collection"]["rows"] == 12
    assert facts["encoder"]["heads"] == 4


def test_the_format_of_states_is_for_new_collections(run: Run, photos: list[Path]) -> None:
    for wanted in ("float16", "int8"):
        done = run("ingest", "photos", "--collection", wanted, "--state-format", wanted)
        assert done.returncode == 0, done.stderr
        about = json.loads(run("info", "--collection", wanted).stdout)
        assert about["collection"]["model"]["state_format"] == wanted
        assert about["encoder"]["state_formats"] == ["float16", "int8"]
    done = run("ingest", "photos", "--collection", "int8", "--state-format", "float16")
    assert done.returncode != 0 and "state_format: is float16, but collection 'int8' holds int8" in done.stderr


def test_ingest_reports_bad_files_and_exits_1(run: Run, photos: list[Path]) -> None:
    photos[3].write_bytes(b"not a picture")
    done = run("ingest", "photos")
    assert done.returncode == 1
    assert photos[3].name in done.stdout + done.stderr
    assert json.loads(run("info").stdout)["collection"]["rows"] == 11


def test_starts_its_own_server(run: Run, photos: list[Path], tiny_model: Path) -> None:
    done = run("ingest", "photos", "--model", tiny_model, encoder=False)
    assert done.returncode == 0, done.stderr
    # A flag is stronger than the environment.
    done = run("search", photos[0], "--model", tiny_model, "--limit", 2, PHS_ENCODER="127.0.0.1:1")
    assert done.returncode == 0, done.stderr
    assert photos[0].name in done.stdout


def test_a_first_ingest_that_fails_does_not_bind_the_collection(run: Run, photos: list[Path], tmp_path: Path) -> None:
    assert run("ingest", "no-such-folder").returncode == 1
    assert not (tmp_path / "phs_milvus.db").exists()
    (tmp_path / "empty").mkdir()
    nothing = run("ingest", "empty", "--milvus", "phs_milvus.db/")
    assert nothing.returncode == 1 and "no images under empty" in nothing.stderr
    assert json.loads(run("info").stdout)["collection"]["rows"] == 0


def test_a_mistyped_database_is_not_made(run: Run, tmp_path: Path) -> None:
    assert run("search", "x.jpg", "--milvus", "typo.db").returncode == 1
    assert json.loads(run("info", "--milvus", "typo.db").stdout)["milvus"]["collections"] == []
    assert not (tmp_path / "typo.db").exists()


@pytest.mark.parametrize(("value", "tls"), [("0", False), ("false", False), ("", False), ("1", True)])
def test_the_environment_can_say_no_to_tls(run: Run, value: str, tls: bool) -> None:
    done = run("info", PHS_ENCODER_TLS=value)
    assert (done.returncode != 0) is tls, done.stderr


def test_the_token_file_of_the_server_will_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    monkeypatch.setenv("PHS_ENCODER_TOKEN_FILE", str(file))
    for text, token in (("secret\n", "secret"), ("# ours\n\n  first \nsecond\n", "first")):
        file.write_text(text)
        assert environment.token() == token
    file.write_text("# none yet\n")
    with pytest.raises(InvalidInput, match="holds no token"):
        environment.token()


def test_no_encoder_there(run: Run) -> None:
    done = run("search", "x.jpg", "--encoder", "127.0.0.1:1")
    assert done.returncode == 1
    assert "127.0.0.1:1" in done.stderr and "phs-server" in done.stderr


def test_a_model_that_cannot_be_found_says_what_to_do(run: Run) -> None:
    done = run("search", "x.jpg", "--model", "facebook/dinov2-base", encoder=False, HF_HUB_OFFLINE="1")
    assert done.returncode == 1
    assert "facebook/dinov2-base" in done.stderr
    assert "config.json, model.safetensors and preprocessor_config.json" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", [(), ("ingest",), ("search",), ("explain",), ("info",), ("demo",), ("serve",)])
def test_help_teaches(run: Run, command: tuple[str, ...]) -> None:
    done = run(*command, "--help")
    assert done.returncode == 0
    assert "usage: phs-milvus" in done.stdout
    assert command != ("serve",) or "(default: text)" in done.stdout
    assert len(done.stdout) > 300


def test_a_picture_that_cannot_be_written_is_explained(run: Run, photos: list[Path]) -> None:
    for name in ("no-such-folder/heads.png", "heads.nonsense"):
        done = run("explain", photos[0], "--save", name)
        assert done.returncode == 1
        assert f"save: cannot write {name}" in done.stderr and "Traceback" not in done.stderr
