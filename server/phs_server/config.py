"""Every setting of the server, once: a field here is a flag --like-this and an environment variable PHS_LIKE_THIS."""

from __future__ import annotations

import argparse
import dataclasses
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, get_type_hints

from phs_milvus.contract.errors import InvalidInput
from phs_milvus.contract.types import Limits


def _setting(default: Any, help: str, **extra: Any) -> Any:
    return field(default=default, metadata={"help": help, **extra})


@dataclass(frozen=True)
class Settings:
    """Settings of one server; flags win over environment variables, which win over these defaults."""

    model: str = _setting(
        "facebook/dinov2-base",
        "Hugging Face model id, or a directory with a checkpoint in transformers format",
    )
    host: str = _setting("127.0.0.1", "address to listen on; 0.0.0.0 is every interface")
    port: int = _setting(50051, "TCP port; 0 picks a free one", minimum=0, maximum=65535)
    image_size: int = _setting(
        0,
        "side of the model's square input in pixels, a multiple of its patch size; 0: the checkpoint's own",
        minimum=0,
    )
    default_heads: int = _setting(
        0, "attention heads kept where a request names no number (h_on); 0: 5 of 12 or 16, 1 of 24", minimum=0
    )
    states: str = _setting(
        "",
        "file that phs-milvus export-states wrote: Scan compares queries with every state in it; it is mapped, and "
        "held in a GPU's memory where it fits; empty: none",
    )
    devices: str = _setting(
        "auto", "torch devices that share the work, for example cpu or cuda:0,cuda:1; auto: a GPU where there is one"
    )
    gpu_mode: str = _setting(
        "graphs",
        "graphs: one CUDA graph per batch size; eager: none",
        choices=("graphs", "eager"),
    )
    cpu_kernels: str = _setting(
        "auto",
        "for a model on a CPU; auto: those that are fastest here, tried once; torch: those that transformers calls; "
        "onednn: oneDNN's, with weights in its own layout",
        choices=("auto", "torch", "onednn"),
    )
    precision: str = _setting(
        "auto",
        "precision of the matrix products; auto: bfloat16 on GPUs and CPUs that have it natively, else float32",
        choices=("auto", "float32", "bfloat16", "float16"),
    )
    threads: int = _setting(0, "CPU threads for the model; 0: one per core, on a GPU 1", minimum=0)
    decode_threads: int = _setting(
        0,
        "processes that decode and resize images, and a quarter as many, but one at least, for those that take long; "
        "0: a quarter of the cores, on a GPU all but one",
        minimum=0,
    )
    max_batch_size: int = _setting(16, "images in one batch", minimum=1)
    max_queue_delay_ms: float = _setting(2.0, "milliseconds a batch may wait to fill", minimum=0)
    max_queue_size: int = _setting(
        1024,
        "images in progress, from admission to answer; beyond, unary calls are answered RESOURCE_EXHAUSTED and bulk "
        "waits, which uses three quarters of them at most",
        minimum=1,
    )
    max_image_bytes: int = _setting(Limits.image_bytes, "bytes of one encoded image", minimum=1)
    max_image_pixels: int = _setting(
        Limits.image_pixels,
        "pixels (width x height) of one decoded image, which may take 8 bytes of memory each; a baseline JPEG, decoded "
        "at reduced scale, may have twice as many",
        minimum=1,
    )
    max_message_bytes: int = _setting(Limits.message_bytes, "bytes of one gRPC message, either way", minimum=65536)
    max_calls: int = _setting(
        128, "unary calls at once; more are answered RESOURCE_EXHAUSTED before their message is read", minimum=1
    )
    max_streams: int = _setting(16, "bulk streams at once; more are answered RESOURCE_EXHAUSTED", minimum=1)
    max_probes: int = _setting(1024, "health checks, watches and reflections at once", minimum=1)
    max_connection_calls: int = _setting(
        256,
        "calls and streams at once on one connection; more wait in the client, or are UNAVAILABLE where those that it "
        "cancelled are not yet cleared away",
        minimum=1,
    )
    max_connections: int = _setting(
        0,
        "connections at once; from three quarters on, those of the address that has most are ended; 0: as many as open "
        "files allow, 4096 at most",
        minimum=0,
    )
    max_in_flight_bytes: int = _setting(
        2**30,
        "bytes of requests and answers in progress; beyond, unary calls are refused; streams wait beyond 3/4",
        minimum=1,
    )
    max_connection_bytes: int = _setting(
        2**29,
        "bytes of requests and answers that one caller, an address or a token, may hold of --max-in-flight-bytes",
        minimum=1,
    )
    max_held_bytes: int = _setting(
        2**28,
        "bytes of pictures that are remembered, so that another prompt for one of them takes a fraction of the time; "
        "on a GPU in its memory; 0: none",
        minimum=0,
    )
    receive_seconds: float = _setting(30.0, "seconds that a unary call may take to send its message", minimum=0.1)
    answer_seconds: float = _setting(
        60.0, "seconds that a unary call may take to read its answer; then its connection is closed", minimum=0.1
    )
    handshake_seconds: float = _setting(10.0, "seconds that a new connection may take for its handshake", minimum=0.1)
    idle_seconds: float = _setting(300.0, "seconds after which a connection without calls is closed", minimum=1)
    age_seconds: float = _setting(
        3600.0, "seconds after which a connection takes no new calls; clients open another one by themselves", minimum=1
    )
    drain_seconds: float = _setting(
        30.0, "seconds that accepted requests get to finish after SIGTERM or Ctrl-C", minimum=0
    )
    tls_cert: str = _setting("", "PEM file of the server's certificate chain; empty: plaintext")
    tls_key: str = _setting("", "PEM file of the certificate's private key")
    tls_client_ca: str = _setting("", "PEM file of the CA that clients' certificates must be signed by (mutual TLS)")
    token_file: str = _setting(
        "", "file of bearer tokens, one per line, read again when it changes; empty: no token is asked for"
    )
    reflection: bool = _setting(False, "tell anybody which methods there are (grpc.reflection.v1alpha)")
    metrics_port: int = _setting(0, "TCP port of Prometheus metrics, at /metrics; 0: none", minimum=0, maximum=65535)
    metrics_host: str = _setting("127.0.0.1", "address the metrics port listens on")
    log_level: str = _setting("info", "how much to log", choices=("debug", "info", "warning", "error"))
    log_format: str = _setting("text", "log lines for people, or JSON objects", choices=("text", "json"))

    @property
    def limits(self) -> Limits:
        """What GetModelInfo tells clients."""
        return Limits(self.max_image_bytes, self.max_image_pixels, self.max_message_bytes)


def parse(arguments: Sequence[str] | None = None, environment: Mapping[str, str] = os.environ) -> Settings:
    """Settings from flags and environment; prints usage and exits on a bad value, as argparse does."""
    parser = make_parser(environment)
    namespace = parser.parse_args(arguments)
    try:
        return from_namespace(namespace)
    except InvalidInput as error:
        parser.error(f"{error.field}: {error}")


def make_parser(environment: Mapping[str, str] = os.environ, prog: str = "phs-server") -> argparse.ArgumentParser:
    """The command line: one flag per field, its default taken from the environment where set there."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description="gRPC embedding server for focused image search: image and mask in, PHS embedding and state out.",
        epilog="Each flag can also be set by the environment variable named in its help. Stop with Ctrl-C or SIGTERM: "
        "accepted requests are finished first. Health (grpc.health.v1): '', 'readiness' and 'phs.v1.FocusEncoder' tell "
        "whether to send requests, 'liveness' whether to leave the process running.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add_flags(parser, environment)
    return parser


def add_flags(parser: argparse.ArgumentParser, environment: Mapping[str, str] = os.environ) -> None:
    """Adds one flag per field of `Settings`."""
    types = get_type_hints(Settings)
    for item in dataclasses.fields(Settings):
        variable = f"PHS_{item.name.upper()}"
        flag = f"--{item.name.replace('_', '-')}"
        if types[item.name] is bool:
            on = environment.get(variable, "").lower() not in ("", "0", "false", "no", "off")
            parser.add_argument(flag, action="store_true", default=on, help=f"{item.metadata['help']} [{variable}]")
            continue
        default = item.default
        kind = _typed(types[item.name], item.metadata.get("minimum"), item.metadata.get("maximum"))
        if variable in environment:
            # argparse applies `type` and reports errors for string defaults too; `choices` it does not check for them.
            default = environment[variable]
        parser.add_argument(
            flag,
            type=kind,
            default=default,
            choices=item.metadata.get("choices"),
            help=f"{item.metadata['help']} [{variable}]",
            metavar=None if item.metadata.get("choices") else types[item.name].__name__.upper(),
        )


def from_namespace(namespace: argparse.Namespace) -> Settings:
    """The fields of `Settings` out of parsed arguments, which may hold more.

    Raises:
        InvalidInput: a choice, out of an environment variable, that there is not.
    """
    values = {item.name: getattr(namespace, item.name) for item in dataclasses.fields(Settings)}
    for item in dataclasses.fields(Settings):
        choices = item.metadata.get("choices")
        if choices and values[item.name] not in choices:
            raise InvalidInput(f"'{values[item.name]}' is not one of {', '.join(choices)}", f"PHS_{item.name.upper()}")
    return Settings(**values)


def _typed(kind: type, minimum: float | None, maximum: float | None) -> Any:
    """An argparse type that names what is allowed."""
    if minimum is None:
        return kind

    def convert(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"'{text}' is not a number") from None
        if not value >= minimum:
            raise argparse.ArgumentTypeError(f"{text} is below {minimum}, the least allowed")
        if maximum is not None and value > maximum:
            raise argparse.ArgumentTypeError(f"{text} is above {maximum}, the most allowed")
        return value

    return convert
