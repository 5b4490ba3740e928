"""Read a user's YAML or JSON file; whatever is wrong with it is one sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cclm.errors import ConfigError


def read_yaml(path: Path, *, expected: str, do: str) -> Any:
    """Return the contents of a YAML file.

    Args:
        path: the file.
        expected: what it should be, for the error's sentence.
        do: what to do about it, for the error's sentence.

    Raises:
        ConfigError: it is missing, a folder, may not be read, or is not UTF-8 or not YAML.
    """
    import yaml

    text = _read_text(path, expected, do)
    try:
        return yaml.load(
            text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        )  # ten times as fast, where it is built
    except yaml.YAMLError as error:
        got = "broken YAML: " + " ".join(str(error).split())
        raise ConfigError(where=str(path), expected=expected, got=got, do=do) from error


def read_json(path: Path, default: Any) -> Any:
    """Return the contents of a JSON file, or `default` if there is none.

    Raises:
        ConfigError: it is a folder, may not be read, or is not UTF-8 or not JSON.
    """
    if not path.exists():
        return default
    expected, do = "a JSON file", "Remove it, or run the command that writes it again."
    text = _read_text(path, expected, do)
    try:
        return json.loads(text)
    except ValueError as error:
        raise ConfigError(where=str(path), expected=expected, got=f"broken JSON: {error}", do=do) from error


def _read_text(path: Path, expected: str, do: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        got: str = "no such file"
        cause: Exception = error
    except IsADirectoryError as error:
        got, cause = "a folder", error
    except OSError as error:
        got, cause = str(error.strerror), error
    except UnicodeDecodeError as error:
        got, cause = f"bytes that are not UTF-8 (at byte {error.start})", error
    raise ConfigError(where=str(path), expected=expected, got=got, do=do) from cause
