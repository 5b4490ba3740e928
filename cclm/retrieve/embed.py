"""Embed images and texts with a model and keep the features as Parquet, part by part.

    source ─ units 0 … R-1 ──▶ part-00000000.parquet     each written under a hidden name and renamed: it is whole or
             units R … 2R-1 ─▶ part-00000001.parquet     it is not there. Started again, only missing parts are made.
    _embedding.json                                       which model, which source: another one is refused

Columns: `unit` (place in the source), `key`, `kind` ("image" or "text"), `text`, `language`, `feature` (E floats, a
unit vector, as `storage.py` keeps it) and `error` (why there is no feature). `pyarrow.parquet.read_table(folder)`
reads all parts.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from cclm.errors import ConfigError, DataError
from cclm.evaluate.embed import Encoded, encode_images, encode_texts
from cclm.files import atomic
from cclm.files.lock import locked_folder
from cclm.files.reading import read_json
from cclm.hub.open import OpenedModel
from cclm.retrieve.embed_source import EmbedSource, Row
from cclm.retrieve.storage import STORES, Storage

FACTS_NAME = "_embedding.json"
"""Begins with "_", so that readers of Parquet folders pass over it."""
DEFAULTS = {"store": "fp32"}
"""Of sets that older versions wrote."""


@dataclass(frozen=True, kw_only=True)
class EmbeddingFacts:
    """What an embedded set was made from."""

    model: str
    """Fingerprint of the weights (`OpenedModel.fingerprint`)."""
    source: str
    """Fingerprint of the source."""
    root: str
    with_captions: bool
    languages: tuple[str, ...]
    num_units: int
    units_per_part: int
    width: int
    """Components of a stored feature."""
    store: str = "fp32"
    """Their type (`storage.STORES`)."""

    @property
    def storage(self) -> Storage:
        """How features are kept."""
        return Storage(width=self.width, store=self.store)

    @property
    def num_parts(self) -> int:
        """Files when all is done."""
        return -(-self.num_units // self.units_per_part)


def part_path(folder: Path, part: int) -> Path:
    """Of a finished part."""
    return folder / f"part-{part:08d}.parquet"


@contextmanager
def written_by_one(folder: Path) -> Iterator[None]:
    """Make the folder, and hold it for the length of the `with` block; a killed command's hold is gone with it.

    Raises:
        ConfigError: another process holds it.
        CclmError: it cannot be made, or nothing can be written there.
    """
    expected, do = "a folder that no other command writes", "Wait for it, or give another --to."
    busy = ConfigError(where=str(folder), expected=expected, got="one that is running", do=do)
    with locked_folder(atomic.make_folder(folder), busy):
        yield


def prepare_folder(folder: Path, facts: EmbeddingFacts, facts_name: str = FACTS_NAME) -> list[int]:
    """Make the folder, or check that it holds the same embedding; return the parts that are missing.

    `facts_name`: under which the facts stand.

    Raises:
        ConfigError: another model, source or layout was embedded there.
    """
    wanted = json.loads(json.dumps(asdict(facts)))
    found = read_json(folder / facts_name, None)
    if found is None:
        if folder.is_dir() and any(folder.iterdir()):
            raise ConfigError(
                where=str(folder),
                expected="a new folder, or one that the same command began",
                got="a folder with other contents",
                do="Give another --to.",
            )
        atomic.replace_text(folder / facts_name, json.dumps(wanted, indent=1) + "\n", durable=True)
    elif other := [name for name, value in wanted.items() if found.get(name, DEFAULTS.get(name)) != value]:
        raise ConfigError(
            where=str(folder),
            expected="the model, source and options that the folder was begun with",
            got=f"another {', another '.join(other)}",
            do="Give another --to, or remove the folder.",
        )
    for leftover in folder.glob(".part-*.partial"):
        leftover.unlink()
    return [part for part in range(facts.num_parts) if not part_path(folder, part).exists()]


@dataclass(frozen=True, kw_only=True)
class Embedder:
    """A model (on any device, in any dtype) and how to feed it."""

    opened: OpenedModel
    batch_size: int = 64

    def images(self, images: Sequence[Callable[[], bytes | Image.Image]]) -> tuple[Tensor, list[str | None]]:
        """Return features (N, E) on the CPU in fp32, zero where an image cannot be read or decoded, and the reasons."""

        def encode(pixels: list[Tensor]) -> Encoded:
            stacked = torch.stack(pixels).to(self.opened.model.device, self.opened.model.dtype)
            return encode_images(self.opened.model, stacked, batch_size=self.batch_size)

        return self._features(images, lambda read: self.opened.pixels(read()), encode)

    def texts(self, texts: Sequence[str]) -> tuple[Tensor, list[str | None]]:
        """Return the same for texts; one of which no token is left has no feature."""

        def check(text: str) -> str:
            self.opened.tokens([text])
            return text

        def encode(known: list[str]) -> Encoded:
            tokens = self.opened.tokens(known).to(self.opened.model.device)
            return encode_texts(self.opened.model, tokens.ids_BL, tokens.mask_BL, batch_size=self.batch_size)

        return self._features(texts, check, encode)

    def _features(
        self, given: Sequence[Any], prepare: Callable[[Any], Any], encode: Callable[[list[Any]], Encoded]
    ) -> tuple[Tensor, list[str | None]]:
        """Compute what can be prepared, and put each feature where its input was."""
        prepared: list[Any] = []
        errors: list[str | None] = []
        for one in given:
            try:
                prepared.append(prepare(one))
                errors.append(None)
            except DataError as error:
                errors.append(f"{error.reason}: {error}")
        found = torch.zeros(len(errors), self.opened.model.config.projection_width)
        if prepared:
            found[torch.tensor([error is None for error in errors])] = encode(prepared).feature_NE.float().cpu()
        return found, errors


def embed_units(
    embedder: Embedder, source: EmbedSource, units: range, on_batch: Callable[[int], None] = lambda unit: None
) -> list[dict[str, Any]]:
    """Return the rows of some units, in their order, with all components; `on_batch` is told each batch's last unit."""
    made = []
    for start in range(units.start, units.stop, embedder.batch_size):
        batch = range(start, min(start + embedder.batch_size, units.stop))
        rows: list[tuple[int, Row]] = [(unit, row) for unit in batch for row in source.rows(unit)]
        images = embedder.images([partial(source.image, unit) for unit, row in rows if row.text is None])
        texts = embedder.texts([row.text for _, row in rows if row.text is not None])
        found = {"image": iter(zip(*images, strict=True)), "text": iter(zip(*texts, strict=True))}
        for unit, row in rows:
            kind = "image" if row.text is None else "text"
            feature, error = next(found[kind])
            values = {"feature": None if error else feature.numpy(), "error": row.error or error}
            made.append({"unit": unit, "kind": kind, **vars(row), **values})
        on_batch(batch.stop - 1)
    return made


def write_part(folder: Path, part: int, rows: list[dict[str, Any]], storage: Storage) -> None:
    """Write one Parquet file: whole, or not at all."""
    import pyarrow as pa
    from pyarrow import parquet

    known = [row for row in rows if row["feature"] is not None]
    packed = iter(storage.pack(torch.stack([torch.as_tensor(row["feature"]) for row in known]))) if known else iter(())
    stored = [{**row, "feature": None if row["feature"] is None else next(packed)} for row in rows]
    text, feature = pa.string(), pa.list_(pa.from_numpy_dtype(STORES[storage.store]), storage.width)
    columns = {"key": text, "kind": text, "text": text, "language": text, "feature": feature, "error": text}
    table = pa.Table.from_pylist(stored, pa.schema({"unit": pa.int64(), **columns}))
    path = part_path(folder, part)
    temporary = atomic.temporary_path(path)
    parquet.write_table(table, temporary, compression="zstd")
    atomic.sync(temporary)
    atomic.publish(temporary, path)


def without_feature(folder: Path, facts: EmbeddingFacts) -> Counter[str]:
    """Count the rows of all parts that have no feature: by kind and reason."""
    from pyarrow import parquet

    tables = (parquet.read_table(part_path(folder, part), columns=["kind", "error"]) for part in range(facts.num_parts))
    broken = (row for table in tables for row in table.filter(table["error"].is_valid()).to_pylist())
    return Counter(f"{row['kind']} {row['error'].partition(':')[0]}" for row in broken)


def embed(
    embedder: Embedder,
    source: EmbedSource,
    folder: Path,
    facts: EmbeddingFacts,
    *,
    on_unit: Callable[[int], None] = lambda unit: None,
    on_rows: Callable[[list[dict[str, Any]]], None] = lambda rows: None,
) -> int:
    """Make the missing parts; returns how many units were embedded now. Raises ConfigError: see `prepare_folder`.

    `on_rows` is given the rows of each part, with all components.
    """
    done = 0
    for part in prepare_folder(folder, facts):
        start = part * facts.units_per_part
        units = range(start, min(start + facts.units_per_part, facts.num_units))
        rows = embed_units(embedder, source, units, on_unit)
        write_part(folder, part, rows, facts.storage)
        on_rows(rows)
        done += len(units)
    return done
