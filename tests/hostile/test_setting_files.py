"""Token files and certificates that are no such thing: one line that names file and remedy, status 2, and no hang."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from phs_milvus.client.channels import Tls
from phs_milvus.client.encoder import Encoder
from phs_milvus.contract.errors import InvalidInput
from phs_milvus.contract.tokens import read_tokens
from tests.servers import REPO


def fifo(path: Path) -> None:
    os.mkfifo(path)


def unreadable(path: Path) -> None:
    path.write_text("secret\n")
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("root reads everything")


def loop(path: Path) -> None:
    path.symlink_to(path)


ODD: dict[str, Callable[[Path], object]] = {
    "FIFO": fifo,
    "folder": Path.mkdir,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "terminal": lambda path: path.symlink_to("/dev/tty"),
    "link to itself": loop,
    "nothing there": lambda path: None,
    "unreadable": unreadable,
    "empty": lambda path: path.write_bytes(b""),
    "only comments": lambda path: path.write_bytes(b"\xef\xbb\xbf# none\n\n"),
    "UTF-8 beyond ASCII": lambda path: path.write_text("t\u00f6ken\n"),
    "Latin-1": lambda path: path.write_bytes(b"t\xf6ken\n"),
    "UTF-16": lambda path: path.write_text("token\n", encoding="utf-16"),
    "control characters": lambda path: path.write_bytes(b"to\x00ken\n"),
    "gigabytes": lambda path: os.truncate(os.open(path, os.O_CREAT | os.O_WRONLY), 2**33),
}


@pytest.mark.parametrize("make", ODD.values(), ids=ODD)
def test_odd_token_files_are_an_error_that_names_the_file(tmp_path: Path, make: Callable[[Path], object]) -> None:
    make(tmp_path / "tokens")
    with pytest.raises(InvalidInput, match="tokens") as caught:
        read_tokens(tmp_path / "tokens", "token_file")
    assert caught.value.field == "token_file" and "\n" not in str(caught.value) and len(str(caught.value)) < 300


def test_a_byte_order_mark_comments_and_windows_line_ends_are_skipped(tmp_path: Path) -> None:
    (tmp_path / "tokens").write_bytes(b"\xef\xbb\xbffirst\r\n# ours\r\n\r\n  second \r\n")
    assert read_tokens(tmp_path / "tokens", "token_file") == ["first", "second"]


def start(*flags: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(REPO), str(REPO / "server")])}
    command = [sys.executable, "-m", "phs_server", "--model", "no-model-is-loaded-before", "--port", "0", *flags]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("kind", ["FIFO", "device", "UTF-8 beyond ASCII"])
def test_the_server_refuses_an_odd_token_file_in_one_line(tmp_path: Path, kind: str) -> None:
    ODD[kind](tmp_path / "tokens")
    done = start("--token-file", str(tmp_path / "tokens"))
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert done.stderr.startswith("phs-server: token_file: ") and "tokens" in done.stderr


@pytest.mark.parametrize("kind", ["FIFO", "device", "folder", "Latin-1"])
@pytest.mark.parametrize("flag", ["tls_cert", "tls_key"])
def test_the_server_refuses_an_odd_certificate_in_one_line(tmp_path: Path, flag: str, kind: str) -> None:
    ODD[kind](tmp_path / "odd")
    (tmp_path / "good").write_text("-----BEGIN CERTIFICATE-----\n")
    files = {"tls_cert": tmp_path / "good", "tls_key": tmp_path / "good", flag: tmp_path / "odd"}
    done = start("--tls-cert", str(files["tls_cert"]), "--tls-key", str(files["tls_key"]))
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith(f"phs-server: {flag}: ") and "odd" in done.stderr


def test_a_pem_file_that_holds_no_key_is_named_before_the_port_is_opened(tmp_path: Path) -> None:
    (tmp_path / "pem").write_text("-----BEGIN CERTIFICATE-----\nbm8=\n-----END CERTIFICATE-----\n")
    done = start("--tls-cert", str(tmp_path / "pem"), "--tls-key", str(tmp_path / "pem"))
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "is not the unencrypted key" in done.stderr


def test_the_client_hangs_on_no_certificate_either(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "ca.pem")
    with pytest.raises(InvalidInput, match="not a regular file"):
        Encoder("localhost:1", tls=Tls(ca=tmp_path / "ca.pem"))
