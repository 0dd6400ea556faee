"""TLS, mutual TLS and bearer tokens over real connections."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from phs_milvus.client.aio import AsyncEncoder
from phs_milvus.client.channels import Tls
from phs_milvus.client.encoder import Encoder
from phs_milvus.contract.errors import EncoderError, EncoderUnauthenticated, InvalidInput
from phs_server.app import ServerThread
from phs_server.config import Settings
from tests.servers import health


@pytest.fixture(scope="module")
def plain(tiny_model: Path) -> Settings:
    return Settings(model=str(tiny_model), port=0, precision="float32", drain_seconds=1)


def local(address: str) -> str:
    return address.replace("127.0.0.1", "localhost")


def test_tls(plain: Settings, pem: Path) -> None:
    secure = replace(plain, tls_cert=str(pem / "server.pem"), tls_key=str(pem / "server.key"))
    with ServerThread(secure) as server:
        address = local(server.address)
        with Encoder(address, tls=Tls(ca=pem / "ca.pem")) as encoder:
            assert encoder.info.heads == 4
        with Encoder(server.address, tls=Tls(ca=pem / "ca.pem", server_name="localhost")) as encoder:
            assert encoder.info.heads == 4
        with Encoder([address, address], tls=Tls(ca=pem / "ca.pem")) as encoder:
            assert encoder.info.heads == 4
        for wrong in (None, True, Tls(ca=pem / "other-ca.pem")):
            with Encoder(address, tls=wrong, timeout=1) as encoder, pytest.raises(EncoderError):
                encoder.info  # noqa: B018

        async def use() -> int:
            async with AsyncEncoder(address, tls=Tls(ca=pem / "ca.pem")) as encoder:
                return (await encoder.fetch_info()).heads

        assert asyncio.run(use()) == 4


def test_mutual_tls(plain: Settings, pem: Path) -> None:
    files = {
        "tls_cert": str(pem / "server.pem"),
        "tls_key": str(pem / "server.key"),
        "tls_client_ca": str(pem / "ca.pem"),
    }
    with ServerThread(replace(plain, **files)) as server:
        address = local(server.address)
        own = Tls(ca=pem / "ca.pem", cert=pem / "client.pem", key=pem / "client.key")
        with Encoder(address, tls=own) as encoder:
            assert encoder.info.heads == 4
        stranger = Tls(ca=pem / "ca.pem", cert=pem / "other-ca.pem", key=pem / "other-ca.key")
        for wrong in (Tls(ca=pem / "ca.pem"), stranger):
            with Encoder(address, tls=wrong, timeout=1) as encoder, pytest.raises(EncoderError):
                encoder.info  # noqa: B018


@pytest.mark.parametrize(
    ("files", "field", "said"),
    [
        ({"tls_cert": "server.pem"}, "tls_key", "is missing, but --tls-cert is given"),
        ({"tls_key": "server.key"}, "tls_cert", "is missing"),
        ({"tls_client_ca": "ca.pem"}, "tls_client_ca", "needs --tls-cert"),
        ({"tls_cert": "none.pem", "tls_key": "server.key"}, "tls_cert", "cannot read"),
        ({"tls_cert": "names", "tls_key": "server.key"}, "tls_cert", "not a PEM file"),
    ],
)
def test_tls_files_that_cannot_be_used(
    plain: Settings, pem: Path, files: dict[str, str], field: str, said: str
) -> None:
    changes = {name: str(pem / file) for name, file in files.items()}
    with pytest.raises(InvalidInput, match=said) as caught, ServerThread(replace(plain, **changes)):
        pass
    assert caught.value.field == field


def test_client_tls_files_that_cannot_be_used() -> None:
    for tls in (Tls(cert="x.pem"), Tls(ca="nowhere.pem")):
        with pytest.raises(InvalidInput) as caught:
            Encoder("localhost:1", tls=tls)
        assert caught.value.field == "tls"


def test_tokens(plain: Settings, tmp_path: Path, make_images: Callable[..., list[Path]]) -> None:
    """Several tokens; replaced while serving; a broken file keeps the last good ones; health asks for none."""
    file = tmp_path / "tokens"
    file.write_text("# ours\nfirst-token\n\n  second-token  \n")
    images = make_images(tmp_path / "images", 3)

    def knows(token: str | None) -> bool:
        with Encoder(server.address, token=token) as encoder:
            try:
                assert encoder.info.heads == 4
                assert [result.width for result in encoder.encode_many(images)] == [160] * 3
                return True
            except EncoderUnauthenticated as error:
                assert "token" in str(error)
            for call in (lambda: encoder.encode(images[0]), lambda: list(encoder.encode_many(images))):
                with pytest.raises(EncoderUnauthenticated):
                    call()
            return False

    async def knows_async(token: str | None) -> bool:
        async with AsyncEncoder(server.address, token=token) as encoder:
            try:
                return (await encoder.fetch_info()).heads == 4
            except EncoderUnauthenticated:
                return False

    with ServerThread(replace(plain, token_file=str(file), reflection=True)) as server:
        assert knows("first-token") and knows("second-token")
        for wrong in (None, "first", "first-token ", "# ours", "FIRST-TOKEN"):
            assert knows(wrong) is (wrong == "first-token ")
        assert asyncio.run(knows_async("first-token")) and not asyncio.run(knows_async("x"))
        assert health(server.address) == "SERVING"
        assert reflection_status(server.address) is grpc.StatusCode.UNAUTHENTICATED
        file.write_text("third-token\n")
        assert knows("third-token") and not knows("first-token")
        file.write_text("# none\n")
        assert knows("third-token") and not knows("# none")
        file.unlink()
        assert knows("third-token")


def reflection_status(address: str) -> grpc.StatusCode:
    ask = reflection_pb2.ServerReflectionRequest(list_services="")
    with grpc.insecure_channel(address) as channel:
        call = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(iter([ask]), timeout=5)
        with pytest.raises(grpc.RpcError):
            list(call)
        return call.code()


def test_a_health_watch_needs_no_token(plain: Settings, tmp_path: Path) -> None:
    (tmp_path / "tokens").write_text("x\n")
    guarded = replace(plain, token_file=str(tmp_path / "tokens"))
    with ServerThread(guarded) as server, grpc.insecure_channel(server.address) as channel:
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=10)
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        watch.cancel()


@pytest.mark.parametrize("content", [None, "", "\n# only a comment\n"])
def test_a_token_file_without_tokens_is_no_token_file(plain: Settings, tmp_path: Path, content: str | None) -> None:
    file = tmp_path / "tokens"
    if content is not None:
        file.write_text(content)
    with pytest.raises(InvalidInput) as caught, ServerThread(replace(plain, token_file=str(file))):
        pass
    assert caught.value.field == "token_file"
