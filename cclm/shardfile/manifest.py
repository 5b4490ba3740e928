"""What a shard set holds: one ShardInfo a shard, the totals, and the command and config that made it."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, NoReturn

from cclm.errors import DataError
from cclm.files.atomic import replace_text
from cclm.shardfile import schema
from cclm.shardfile.codec import canonical_json
from cclm.types import View


@dataclass(frozen=True, kw_only=True)
class Counts:
    """What a shard, or a set, holds."""

    samples: int
    """Images, or groups of text pairs: what the reader addresses."""
    rows: int
    """Captions of the images, or text pairs."""
    size_bytes: int
    """Length of the tars."""
    languages: Mapping[str, int]
    """Texts by language; a sentence that a group shares counts once."""
    sources: Mapping[str, int]
    """Samples by source (a group counts for the source of its first pair)."""
    licences: Mapping[str, int]
    """Samples by licence."""


@dataclass(frozen=True, kw_only=True)
class ShardInfo(Counts):
    """One shard: its counts, name and hashes."""

    name: str
    """File name of the tar; the index stands beside it."""
    sha256: str
    """Of the tar, in hexadecimal."""
    index_sha256: str
    """Of the index."""

    @classmethod
    def from_json(cls, item: Mapping[str, Any]) -> ShardInfo:
        """Return the ShardInfo of its JSON form (`dataclasses.asdict`); unknown fields are ignored."""
        return cls(**{column.name: item[column.name] for column in fields(cls)})

    @property
    def index_name(self) -> str:
        """File name of the index."""
        return self.name.removesuffix(schema.TAR_SUFFIX) + schema.INDEX_SUFFIX


@dataclass(frozen=True, kw_only=True)
class Totals(Counts):
    """Sums over a set's shards."""

    shards: int


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The contents of manifest.json. The list of shards is the truth: a tar it does not name is not in the set."""

    view: View
    shards: Sequence[ShardInfo]
    command: str = ""
    """The command that made the set."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """The settings that made it: JSON values only."""
    format_version: int = schema.FORMAT_VERSION

    @property
    def totals(self) -> Totals:
        """The sums over the shards."""
        sums: dict[str, Any] = {}
        for name in ("samples", "rows", "size_bytes"):
            sums[name] = sum(getattr(shard, name) for shard in self.shards)
        for name in ("languages", "sources", "licences"):
            table = Counter[str]()
            for shard in self.shards:
                table.update(getattr(shard, name))
            sums[name] = dict(sorted(table.items()))
        return Totals(shards=len(self.shards), **sums)

    def fingerprint(self, with_captions: bool, languages: Sequence[str]) -> str:
        """Return a hash of the shards' content, and of which texts `cclm embed` takes of them."""
        taken = f"captions={with_captions} languages={','.join(sorted(languages))}"
        return hashlib.sha256("\n".join([taken, *map(repr, self.shards)]).encode()).hexdigest()

    def text(self) -> str:
        """Return the file's text: the same manifest, the same bytes."""
        document: dict[str, Any] = {
            "format": schema.FORMAT,
            "format_version": self.format_version,
            "view": self.view.value,
            "totals": asdict(self.totals),
            "shards": [asdict(shard) for shard in self.shards],
            "command": self.command,
            "config": self.config,
        }
        document["checksum"] = _checksum(document)
        return json.dumps(document, ensure_ascii=False, allow_nan=False, sort_keys=True, indent=1) + "\n"

    def save(self, folder: Path) -> None:
        """Write `folder`/manifest.json atomically. Written last, it makes the set visible."""
        replace_text(folder / schema.MANIFEST_NAME, self.text(), durable=True)

    @classmethod
    def load(cls, folder: Path) -> Manifest:
        """Read `folder`/manifest.json. DataError: reasons manifest_missing, manifest_unreadable, manifest_broken,
        manifest_field, format_version, totals_wrong, manifest_hash."""
        path = folder / schema.MANIFEST_NAME
        try:
            document = json.loads(path.read_bytes().decode("utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            _refuse("manifest_missing", "a shard set (a folder with manifest.json)", "no such file", path)
        except OSError as error:
            _refuse("manifest_unreadable", "a file that can be read", f"{error.strerror}", path)
        except (UnicodeDecodeError, json.JSONDecodeError) as error:
            _refuse("manifest_broken", "JSON in UTF-8", f"bytes that do not parse ({error})", path)
        if not isinstance(document, dict) or document.get("format") != schema.FORMAT:
            _refuse("manifest_broken", f'a manifest of format "{schema.FORMAT}"', "another JSON file", path)
        version = document.get("format_version")
        if version != schema.FORMAT_VERSION:
            _refuse("format_version", f"shard format version {schema.FORMAT_VERSION}", f"version {version!r}", path)
        try:
            manifest = cls(
                view=View(document["view"]),
                shards=tuple(ShardInfo.from_json(item) for item in document["shards"]),
                command=document["command"],
                config=document["config"],
            )
            totals = document["totals"]
        except (KeyError, TypeError, ValueError) as error:
            _refuse("manifest_field", "all fields of docs/shard-format.md", f"{type(error).__name__}: {error}", path)
        if totals != asdict(manifest.totals):
            _refuse("totals_wrong", "totals that are the sums over the shards", "other numbers", path)
        if document.get("checksum", (checksum := _checksum(document))) != checksum:
            _refuse("manifest_hash", "a manifest as it was written", "one that was changed", path)
        return manifest


def _checksum(document: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a manifest's fields but `checksum`, in canonical JSON."""
    values = {name: value for name, value in document.items() if name != "checksum"}
    return hashlib.sha256(canonical_json(values)).hexdigest()


def _refuse(reason: str, expected: str, got: str, path: Path) -> NoReturn:
    do = "Check the path, or build the set again with `python -m shards build`."
    raise DataError(reason=reason, expected=expected, got=got, do=do, where=str(path))
