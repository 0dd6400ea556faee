"""Search settings that `phs-milvus tune` writes and `phs-milvus search --settings` reads: a JSON file."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from phs_milvus.contract.errors import InvalidInput, reason_of, shown
from phs_milvus.contract.files import read_small_file
from phs_milvus.contract.types import Focus
from phs_milvus.search.scores import Score, check_score


@dataclass(frozen=True)
class SearchSettings:
    """How to search one model's collections.

    Attributes:
        focus, candidates, score, min_score: as `FocusedSearch.search` takes them.
        fingerprint: of the model that the settings were chosen for; "" for any model.
        measured: the figures on which the choice was made, for people to read.
    """

    focus: Focus = Focus()
    candidates: int | None = None
    fingerprint: str = ""
    measured: dict[str, Any] = field(default_factory=dict)
    score: Score = "blend"
    min_score: float | None = None


def read_settings(path: str | Path) -> SearchSettings:
    """Reads a settings file.

    Raises:
        InvalidInput: the file is missing or not JSON, or a field is unknown or has a wrong value.
    """
    try:
        values = json.loads(read_small_file(path, "settings"))
        if not isinstance(values, dict) or not isinstance(values.get("focus", {}), dict):
            raise ValueError("no JSON object")
        # Files without a score are older than the choice between scores, and than stage one's own heads.
        base = Focus() if "score" in values else Focus.paper()
        settings = SearchSettings(_focus(base, values.pop("focus", {})), **{"score": "query_db", **values})
        check_score(settings.score, settings.min_score)
    except InvalidInput as error:
        raise InvalidInput(f"{shown(path)}: {shown(error)}", "settings") from error
    except OSError as error:
        raise InvalidInput(f"cannot read {shown(path)}: {reason_of(error)}", "settings") from error
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        reason = reason_of(error)
        raise InvalidInput(
            f"{shown(path)} is not a settings file of `phs-milvus tune`: {reason}", "settings"
        ) from error
    if not isinstance(settings.candidates, int | None) or not isinstance(settings.fingerprint, str):
        raise InvalidInput(f"{shown(path)}: candidates must be a whole number and fingerprint text", "settings")
    return settings


def is_settings(path: str | Path) -> bool:
    """Whether a file is a settings file."""
    try:
        read_settings(path)
    except InvalidInput:
        return False
    return True


# Names in files of 0.1.0 -> names now.
_RENAMED = {"heads": "heads_on", "roi": "attention_shift"}
_EVERY_HEAD_0_1_0 = 2**32 - 1


def _focus(base: Focus, values: dict[str, Any]) -> Focus:
    """The Focus of a JSON object that this version or 0.1.0 wrote; `base` says what is missing there."""
    named = {_RENAMED.get(name, name): value for name, value in values.items()}
    if named.get("heads_on") == _EVERY_HEAD_0_1_0:
        named["heads_on"] = "all"
    return replace(base, **named)
