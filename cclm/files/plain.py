"""Typed values → plain ones, as YAML and JSON hold them; the way back of `cclm.files.typed`."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from cclm.files.hints import INLINE


def to_plain(value: Any) -> Any:
    """Return mappings, lists, texts, numbers, truths and None."""
    if is_dataclass(value) and not isinstance(value, type):
        found: dict[str, Any] = {}
        for item in fields(value):
            inner = to_plain(getattr(value, item.name))
            found.update(inner if item.metadata.get(INLINE) else {item.name: inner})
        return found
    if isinstance(value, Mapping):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list | set | frozenset):
        return [to_plain(item) for item in value]
    if isinstance(value, enum.Enum):
        return value.value
    return str(value) if isinstance(value, Path) else value


def to_yaml(value: Any) -> str:
    """Return YAML text that reads back as the same values."""
    import yaml

    text: str = yaml.safe_dump(to_plain(value), sort_keys=False, allow_unicode=True)
    return text
