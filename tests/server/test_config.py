"""Every setting is a flag and a variable; bad values exit with usage."""

from __future__ import annotations

import argparse

import pytest

from phs_server.config import Settings, add_flags, make_parser, parse


def test_every_setting_is_a_flag_and_a_variable_with_its_help() -> None:
    text = make_parser({}).format_help()
    for name in Settings.__dataclass_fields__:
        assert f"--{name.replace('_', '-')}" in text and f"[PHS_{name.upper()}]" in text
    chosen = parse(["--port", "7"], {"PHS_PORT": "5", "PHS_MAX_BATCH_SIZE": "3"})
    assert (chosen.port, chosen.max_batch_size, chosen.host) == (7, 3, "127.0.0.1")


def test_a_bad_variable_is_no_error_of_other_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PHS_PRECISION", "bogus")
    commands = argparse.ArgumentParser().add_subparsers()
    add_flags(commands.add_parser("serve"))


@pytest.mark.parametrize(
    ("flags", "variables", "said"),
    [
        (["--port", "-1"], {}, "-1 is below 0"),
        (["--port", "70000"], {}, "70000 is above 65535"),
        (["--max-batch-size", "many"], {}, "'many' is not a number"),
        ([], {"PHS_MAX_CALLS": "0"}, "0 is below 1"),
        ([], {"PHS_PRECISION": "int4"}, "PHS_PRECISION: 'int4' is not one of"),
        (["--log-format", "xml"], {}, "invalid choice"),
    ],
)
def test_bad_settings_exit_with_usage(
    flags: list[str], variables: dict[str, str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        parse(flags, variables)
    assert said in capsys.readouterr().err
