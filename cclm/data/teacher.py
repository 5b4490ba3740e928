"""Stored features of a view's teacher, found by their text (of images: by set and key), for all processes of a node.

    *.parquet ──▶ features.npy   (R, T) float16, unit vectors, in the files' order; they pass through, some at a time
              └─▶ keys.npy       (2, K) int64: hash of text or key, sorted, each once; row. 40 bytes a row while made
    index.json                   whether there are images, and of which sets

It lies in the node's cache under a name that is the hash of the Parquet files' footers, so one of other files is never
taken; a killed or damaged one is made again. Processes map it into memory: it is there once, however many read it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import compute as pc
from pyarrow import parquet

from cclm.data.ledger import image_hash, text_hash
from cclm.data.options import TeacherConfig
from cclm.errors import ConfigError
from cclm.files.atomic import publish, replace_text, temporary_path
from cclm.files.reading import read_json
from cclm.rows.guard import described
from cclm.shardfile.cache import cache_folder, file_lock
from cclm.shardfile.manifest import Manifest
from cclm.shardfile.options import CacheConfig

FACTS_NAME = "_embedding.json"
"""What `cclm embed` writes about a folder of Parquet files."""
FEATURES, KEYS, INDEX = "features.npy", "keys.npy", "index.json"
NAME = "teacher-1"
"""Of its folder in the cache, with the version of what stands in it."""
BATCH_ROWS, BUFFER_BYTES = 4096, 1 << 20
FOOTER_END = 8
"""Bytes behind a Parquet file's footer: its length, and PAR1."""
_DO = "docs/recipes.md, “A teacher's features”, says what they hold; `cclm embed` writes them."


@dataclass(frozen=True, kw_only=True)
class EmbeddedImages:
    """A set whose images have features, and how its fingerprint is made."""

    fingerprint: str
    with_captions: bool
    languages: tuple[str, ...]

    def is_of(self, manifest: Manifest) -> bool:
        """Whether this is the set, wherever it lies."""
        return manifest.fingerprint(self.with_captions, self.languages) == self.fingerprint


@dataclass(frozen=True, kw_only=True)
class IndexFacts:
    """What an index holds."""

    num_images: int
    """Rows that are images."""
    images: tuple[EmbeddedImages, ...]
    """Sets whose images have features; of images that don't say their set there is none."""


class TeacherIndex:
    """A finished index, mapped."""

    def __init__(self, folder: Path, facts: IndexFacts) -> None:
        self.facts = facts
        self._features: NDArray[np.float16] = np.load(folder / FEATURES, mmap_mode="r")
        keys: NDArray[np.int64] = np.load(folder / KEYS, mmap_mode="r")
        self._keys, self._rows = keys[0], keys[1]

    def look_up(self, keys: Sequence[int] | NDArray[np.int64]) -> tuple[NDArray[np.float16], NDArray[np.bool_]]:
        """Return the features (N, T) of some keys, zeros where there is none, and where there is one."""
        wanted = np.array(keys, dtype=np.int64)
        place = np.minimum(np.searchsorted(self._keys, wanted), len(self._keys) - 1)
        known = self._keys[place] == wanted
        found = np.zeros((len(wanted), self._features.shape[1]), dtype=np.float16)
        found[known] = self._features[self._rows[place[known]]]
        return found, known


@dataclass(frozen=True, kw_only=True)
class TeacherFiles:
    """A teacher's Parquet files, looked at but not read."""

    paths: tuple[Path, ...]
    identity: str
    """Hash of their footers, in which lengths, places and bounds of all columns stand."""


def teacher_files(teacher: TeacherConfig) -> TeacherFiles:
    """Find a teacher's files, and what they are; reads no feature.

    Raises:
        ConfigError: there are none, some are missing, or one has other columns or another width.
    """
    root = Path(teacher.path)
    paths = sorted(path for path in root.rglob("*.parquet") if not path.name.startswith((".", "_")))
    if not paths:
        _refuse(root, "a folder with Parquet files of features", "none in it" if root.exists() else "nothing there")
    digest = hashlib.sha256(str(teacher.width).encode())
    for folder in sorted({path.parent for path in paths}):
        facts = _embedding(folder)
        digest.update(f"\0{facts.get('source')}".encode())
        wanted = -(-facts["num_units"] // facts["units_per_part"]) if facts else 0
        if (found := sum(path.parent == folder for path in paths)) < wanted:
            do = "Start `cclm embed` with the same options again: it makes what is missing."
            _refuse(folder, f"{wanted} Parquet files, as many as `cclm embed` makes of its source", f"{found}", do)
    for path in paths:
        _check_columns(path, teacher.width)
        digest.update(f"\0{path.relative_to(root).as_posix()}\0{path.stat().st_size}\0".encode())
        digest.update(_footer(path))
    return TeacherFiles(paths=tuple(paths), identity=digest.hexdigest())


def open_index(teacher: TeacherConfig, cache: CacheConfig) -> TeacherIndex:
    """Open the node's index of a teacher's features; make it first, or wait for the process that does.

    Raises:
        ConfigError: files that don't hold features (as `teacher_files`), or a cache that cannot be written.
    """
    files = teacher_files(teacher)
    folder = cache_folder(cache) / f"{NAME}-{files.identity[:16]}"
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with file_lock(folder):
            found = _opened(folder)
            if found is None:
                shutil.rmtree(folder, ignore_errors=True)
                _make(files, teacher.width, folder)
                found = _opened(folder)
    except OSError as error:
        got = error.strerror or str(error)
        do = "Free some room, or set data.cache.folder to a folder on a disk of the node."
        raise ConfigError(where=str(folder), expected="a cache that can be written", got=got, do=do) from error
    assert found is not None, "just made"
    return found


def _opened(folder: Path) -> TeacherIndex | None:
    """Return a whole index; None: there is none (the cache may have let go of a file)."""
    facts = read_json(folder / INDEX, None)
    if facts is None:
        return None
    images = tuple(EmbeddedImages(**{**one, "languages": tuple(one["languages"])}) for one in facts["images"])
    try:
        return TeacherIndex(folder, IndexFacts(**{**facts, "images": images}))
    except (OSError, ValueError):  # numpy's words for a file that is cut off
        return None


def _make(files: TeacherFiles, width: int, folder: Path) -> None:
    """Write an index under a hidden name, then give it its own."""
    growing = temporary_path(folder)
    shutil.rmtree(growing, ignore_errors=True)
    growing.mkdir()
    most = sum(parquet.ParquetFile(path).metadata.num_rows for path in files.paths)
    shape = max(1, most), width
    features = np.lib.format.open_memmap(growing / FEATURES, mode="w+", dtype=np.float16, shape=shape)
    key_R, num_rows, num_images = np.empty(most, dtype=np.int64), 0, 0
    sets = dict[str, EmbeddedImages]()
    for path in files.paths:
        source = _images_of(path.parent)
        for keys, found, images in _batches(path, width, "" if source is None else source.fingerprint):
            stop = num_rows + len(keys)
            key_R[num_rows:stop], features[num_rows:stop] = keys, found
            num_rows, num_images = stop, num_images + images
            if images and source is not None:
                sets[source.fingerprint] = source
    if not num_rows:
        _refuse(files.paths[0].parent, "rows with a feature", "none")
    features.flush()
    order = np.argsort(key_R[:num_rows], kind="stable")
    ordered = key_R[order]
    first = np.concatenate([[True], ordered[1:] != ordered[:-1]])
    index = np.lib.format.open_memmap(growing / KEYS, mode="w+", dtype=np.int64, shape=(2, int(first.sum())))
    index[0], index[1] = ordered[first], order[first]
    index.flush()
    facts = asdict(IndexFacts(num_images=num_images, images=tuple(sets.values())))
    replace_text(growing / INDEX, json.dumps(facts) + "\n", durable=True)
    publish(growing, folder)


def _batches(path: Path, width: int, source: str) -> Iterator[tuple[list[int], NDArray[np.float32], int]]:
    """Yield keys and unit vectors of some rows of a file at a time, and how many of them are images."""
    try:
        file = parquet.ParquetFile(path, buffer_size=BUFFER_BYTES, pre_buffer=False)  # else a whole row group at once
        columns = [name for name in ("text", "key", "feature") if name in file.schema_arrow.names]
        for batch in file.iter_batches(BATCH_ROWS, columns=columns):
            rows = batch.filter(batch["feature"].is_valid())
            if not len(rows):
                continue
            lengths = pc.list_value_length(rows["feature"]).unique().to_pylist()
            if lengths != [width]:
                _refuse(path, f"features of {width} numbers (teacher.width)", f"of {lengths}")
            texts = rows["text"].to_pylist()
            names = rows["key"].to_pylist() if "key" in columns else [None] * len(texts)
            if any(text is None and name is None for text, name in zip(texts, names, strict=True)):
                _refuse(path, "a text, or the key of an image, beside each feature", "a row with neither")
            keys = [
                image_hash(source, name) if text is None else text_hash(text)
                for text, name in zip(texts, names, strict=True)
            ]
            values = rows["feature"].flatten().cast(pa.float32()).to_numpy(zero_copy_only=False).reshape(-1, width)
            norm_N1 = np.linalg.norm(values, axis=1, keepdims=True)
            if not (np.isfinite(norm_N1) & (norm_N1 > 0)).all():
                _refuse(path, "features with a direction", "one of zeros, or with numbers that are not finite")
            yield keys, values / norm_N1, texts.count(None)
    except pa.ArrowException as error:
        _refuse(path, "a Parquet file of features", described(error))


def _check_columns(path: Path, width: int) -> None:
    try:
        schema = parquet.read_schema(path)
    except (pa.ArrowException, OSError) as error:
        _refuse(path, "a Parquet file", described(error))
    types: dict[str, Any] = {name: schema.field(name).type for name in schema.names}
    kind, text = (types.get(name, pa.null()) for name in ("feature", "text"))
    is_fixed = pa.types.is_fixed_size_list(kind)
    is_list = is_fixed or pa.types.is_list(kind) or pa.types.is_large_list(kind)
    if not is_list or not (pa.types.is_string(text) or pa.types.is_large_string(text)):
        got = ", ".join(f"{name} ({one})" for name, one in types.items())
        _refuse(path, "the columns text (strings) and feature (lists of numbers)", got or "none")
    if is_fixed and kind.list_size != width:
        _refuse(path, f"features of {width} numbers (teacher.width)", f"of {kind.list_size}")


def _footer(path: Path) -> bytes:
    with path.open("rb") as file:
        end = file.seek(-FOOTER_END, os.SEEK_END)
        length = int.from_bytes(file.read(4), "little")
        file.seek(end - length)
        return file.read(length)


def _embedding(folder: Path) -> Mapping[str, Any]:
    """What `cclm embed` says about a folder; nothing of one that somebody else wrote."""
    found: Mapping[str, Any] = read_json(folder / FACTS_NAME, {})
    return found


def _images_of(folder: Path) -> EmbeddedImages | None:
    """The set that a folder's images are from, if it says so."""
    facts = _embedding(folder)
    if not facts:
        return None
    languages = tuple(facts["languages"])
    return EmbeddedImages(fingerprint=facts["source"], with_captions=facts["with_captions"], languages=languages)


def _refuse(where: Path, expected: str, got: str, do: str = _DO) -> NoReturn:
    raise ConfigError(where=str(where), expected=expected, got=got, do=do)
