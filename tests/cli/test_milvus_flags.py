"""The flags that pass on what Milvus itself can do."""

from __future__ import annotations

import json
from pathlib import Path

from tests.cli.conftest import Run


def test_searching_with_options_of_milvus(run: Run, photos: list[Path]) -> None:
    assert run("ingest", "photos").returncode == 0
    search = ("search", photos[0], "--limit", 2, "--json")
    plain = run(*search)
    options = ("--partition", "_default", "--consistency", "strong", "--timeout", 20, "--search-params", '{"ef": 99}')
    same = run(*search, *options, "--fields", "*")
    assert same.returncode == 0, same.stderr
    hits = json.loads(same.stdout)
    assert [hit["id"] for hit in hits] == [hit["id"] for hit in json.loads(plain.stdout)]
    assert all({"path", "width", "height", "digest"} <= set(hit) for hit in hits)
    for wrong, text in (
        (("--partition", "none"), "partition_names: collection 'images' has no partition 'none'; there are: _default"),
        (("--filter", "width >"), "filter: Milvus does not take the filter 'width >'"),
        (("--group-by", "none"), "group_by_field: Milvus does not take the group_by_field 'none'"),
        (("--db-name", "none"), "there is no database 'none'; there are: default"),
    ):
        done = run(*search, *wrong)
        assert done.returncode == 1 and done.stderr.count("\n") == 1, done.stderr
        assert done.stderr.startswith(f"phs-milvus: {text}")
    for wrong in (("--consistency", "strict"), ("--timeout", "0"), ("--search-params", "ef=3")):
        done = run(*search, *wrong)
        assert done.returncode == 2 and f"argument {wrong[0]}: " in done.stderr.splitlines()[-1]


def test_no_milvus_is_one_line(run: Run, photos: list[Path]) -> None:
    for command in (("ingest", "photos"), ("search", photos[0]), ("info",)):
        done = run(*command, "--milvus", "http://127.0.0.1:1", "--timeout", 1)
        assert done.returncode == 1 and done.stderr.startswith("phs-milvus: no Milvus at http://127.0.0.1:1: ")
        assert done.stderr.count("\n") == 1
