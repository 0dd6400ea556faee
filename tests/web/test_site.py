"""The page as a site: its headers, its login, and what it says while something is missing."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from phs_milvus import Encoder
from phs_milvus.contract.errors import CollectionError, EncoderUnavailable, MilvusUnavailable
from phs_milvus.web.backend import Backend
from phs_milvus.web.settings import WebSettings
from phs_milvus.web.site import STATIC
from tests.web.support import Site, open_encoder, request

TOKEN = "a token; with = odd, characters"


@pytest.fixture(scope="module")
def guarded(serve: Callable[..., Site], tmp_path_factory: pytest.TempPathFactory) -> Site:
    tokens = tmp_path_factory.mktemp("tokens") / "tokens.txt"
    tokens.write_text(f"{TOKEN}\n")
    return serve(settings=WebSettings(port=0, token_file=str(tokens)))


def test_every_answer_keeps_other_sites_out(site: Site) -> None:
    for path in ("/", "/static/js/main.js", "/api/v1/info", "/api", "/image/nowhere", "/no/such/path"):
        headers = site.get(path).headers
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy
        assert headers["x-content-type-options"] == "nosniff" and "frame-ancestors 'none'" in policy


def test_other_sites_are_refused(site: Site) -> None:
    assert site.get("/", host="evil.example").status == 421
    assert site.post("/api/v1/search", {}, origin="https://evil.example").status == 403
    assert site.get("/image/image-0000.jpg", sec_fetch_site="cross-site", sec_fetch_mode="no-cors").status == 403


def test_the_page_asks_no_other_host_and_has_no_inline_script() -> None:
    for file in STATIC.rglob("*"):
        if file.suffix not in (".html", ".css", ".js", ".svg"):
            continue
        text = file.read_text()
        hosts = set(re.findall(r"https?://[^\s\"'`)>]+", text)) - {"http://www.w3.org/2000/svg"}
        assert not hosts, (file, hosts)
        if file.suffix == ".html":
            assert not re.search(r"<script(?![^>]*\bsrc=)|\son\w+=|\sstyle=|<style", text), file
    assert sum(file.stat().st_size for file in STATIC.rglob("*") if file.is_file()) < 500_000


def test_people_are_shown_the_login_and_programs_the_problem(guarded: Site) -> None:
    shown = guarded.get("/?id=a.jpg&p=b1,2,3,4", accept="text/html")
    assert shown.status == 303
    assert shown.headers["location"] == "/login?next=%2F%3Fid%3Da.jpg%26p%3Db1%2C2%2C3%2C4"
    for path in ("/api/v1/info", "/image/image-0000.jpg", "/static/js/main.js"):
        refused = guarded.get(path)
        assert refused.status == 401 and refused.headers["content-type"] == "application/problem+json"
    assert guarded.get("/api/v1/info", authorization=f"Bearer {TOKEN}").status == 200
    assert guarded.get("/login").status == guarded.get("/static/login.css").status == 200


def log_in(site: Site, token: str, target: str = "/?id=a.jpg") -> tuple[int, str, str]:
    """(status, cookie, location) of a login."""
    from urllib.parse import urlencode

    answer = site.post("/login", urlencode({"token": token, "next": target}).encode())
    return answer.status, answer.headers.get("set-cookie", ""), answer.headers.get("location", "")


def test_a_login_gives_a_cookie_that_scripts_and_other_sites_do_not_get(guarded: Site) -> None:
    status, cookie, location = log_in(guarded, TOKEN)
    assert status == 303 and location == "/?id=a.jpg"
    assert "HttpOnly" in cookie and "SameSite=strict" in cookie and TOKEN not in cookie
    value = cookie.partition(";")[0]
    assert guarded.get("/api/v1/info", cookie=value).json["login"] is True
    assert guarded.get("/api/v1/info", cookie=value[:-4] + "AAAA").status == 401
    assert guarded.get("/api/v1/info", cookie="phs_token=%%%").status == 401
    left = guarded.post("/logout", b"", cookie=value)
    assert left.status == 303 and 'phs_token=""' in left.headers["set-cookie"]


@pytest.mark.parametrize("target", ["https://evil.example/", "//evil.example", "/\\evil.example", "javascript:x", ""])
def test_a_login_leads_to_this_site_only(guarded: Site, target: str) -> None:
    assert log_in(guarded, TOKEN, target)[2] == "/"


def test_a_wrong_token_is_told_and_no_cookie_given(guarded: Site) -> None:
    status, cookie, _ = log_in(guarded, "guess", '"><script>')
    assert (status, cookie) == (403, "")
    page = guarded.post("/login", b"token=guess&next=/%22%3E%3Cscript%3E").body.decode()
    assert 'role="alert"' in page and "<script>" not in page


def test_without_tokens_there_is_no_login(site: Site) -> None:
    assert site.get("/login").status == 404 and site.get("/api/v1/info").json["login"] is False


def test_a_page_is_there_before_its_encoder_and_says_so(serve: Callable[..., Site], address: str) -> None:
    away = [EncoderUnavailable("nobody there yet")] * 2

    def opens() -> Encoder:
        if away:
            raise away.pop()
        return open_encoder(address)

    site = serve(encoder=opens, wait=False)
    assert site.get("/").status == 200
    state = site.get("/api/v1/info").json["state"]
    assert state["missing"] == "encoder"
    refused = site.post("/api/v1/search", {"id": "image-0000.jpg"})
    assert refused.status == 503 and "retry-after" in refused.headers
    until = time.monotonic() + 20
    while (state := site.get("/api/v1/info").json["state"])["name"] != "ready":
        assert state["detail"] in ("nobody there yet", "") and time.monotonic() < until, state
        time.sleep(0.05)
    assert site.post("/api/v1/search", {"id": "image-0000.jpg"}).status == 200


def test_a_missing_collection_is_named(serve: Callable[..., Site]) -> None:
    site = serve("nowhere", wait=False)
    until = time.monotonic() + 20
    while not (state := site.get("/api/v1/info").json["state"])["detail"]:
        assert time.monotonic() < until
        time.sleep(0.05)
    assert state["name"] == "away" and state["missing"] == "collection" and "nowhere" in state["detail"]
    refused = site.post("/api/v1/search", {"id": "image-0000.jpg"})
    assert refused.status >= 502 and "nowhere" in refused.json["detail"]


def test_an_empty_collection_stays_open_and_says_so(serve: Callable[..., Site], photos: list[Path]) -> None:
    site = serve("empty")
    digest = site.post("/api/v1/pictures", photos[0].read_bytes()).json["picture"]
    for _ in range(2):
        answer = site.post("/api/v1/search", {"picture": digest})
        assert answer.status == 404 and answer.json["field"] == "collection" and "is empty" in answer.json["detail"]
    info = site.get("/api/v1/info").json
    assert info["state"]["name"] == "ready" and info["collection"]["rows"] == 0
    assert site.get("/api/v1/rows").json == {"ids": [], "after": None}


def test_milvus_that_cannot_be_reached_is_said_at_once_and_found_again(database: str, address: str) -> None:
    away = True

    def probe() -> None:
        if away:
            raise MilvusUnavailable("Milvus does not answer")

    said: list[str] = []
    lines = said.append
    with Backend(lambda: open_encoder(address), lambda: None, "photos", probe=probe, say=lines) as backend:
        until = time.monotonic() + 20
        while backend.state().name != "away":
            assert time.monotonic() < until
            time.sleep(0.02)
        with pytest.raises(CollectionError, match="does not answer"):
            backend.ready()
    assert said == ["Milvus does not answer"]


def test_requests_of_a_page_that_moved_on_are_dropped(site: Site) -> None:
    import http.client
    import json

    body = json.dumps({"id": "image-0001.jpg", "prompt": [{"box": [1, 1, 50, 50]}]})
    for _ in range(30):
        connection = http.client.HTTPConnection("127.0.0.1", site.port, timeout=10)
        connection.request("POST", "/api/v1/search", body)
        connection.close()
    answer = request(site.port, "/api/v1/search", body)
    assert answer.status == 200 and len(answer.json["hits"]) == 10
