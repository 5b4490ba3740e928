"""A folder of pictures with a table of captions beside them: how to bring your own image-text corpus.

FOLDER/captions.jsonl   {"image": "a/b.jpg", "captions": {"en": ["…"], "de": ["…"]}, "licence": "CC-BY-4.0"}
FOLDER/captions.csv     image,language,caption[,licence,source,identity]; one line a caption, with a header
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from PIL import Image

from cclm.errors import ConfigError, DataError
from cclm.shardfile.codec import check_image
from cclm.types import ImageTextRecord
from shards.draft import Draft, Part

_FORMATS = {".jpg": "jpg", ".jpeg": "jpg", ".png": "png", ".webp": "webp"}


def image_folder(folder: Path, source: str = "", licence: str = "unknown") -> Sequence[Part]:
    """Return one part, with one draft per picture that the table names.

    Args:
        folder: holds captions.jsonl or captions.csv; the table's paths are relative to it.
        source: the corpus's name where a line gives none; empty: the folder's name.
        licence: SPDX tag where a line gives none.
    """
    folder = Path(folder)
    defaults = {"source": source or folder.resolve().name, "licence": licence}
    tables = [folder / name for name in ("captions.jsonl", "captions.csv") if (folder / name).exists()]
    if not tables:
        raise ConfigError(
            expected="captions.jsonl or captions.csv",
            got="neither",
            do="Write one; docs/shard-format.md says how.",
            where=str(folder),
        )
    stamp, number = hashlib.sha256(), 0
    for number, row in enumerate(_read_table(tables[0]), 1):  # noqa: B007
        stamp.update(_stamp(folder, row).encode("utf-8", "surrogatepass"))
    read = partial(_drafts, folder, tables[0].name, defaults)
    return [Part(name=tables[0].name, read=read, stamp=stamp.hexdigest(), records=number)]


def _drafts(folder: Path, table: str, defaults: dict[str, str]) -> Iterator[Draft]:
    for line in _read_table(folder / table):
        row = defaults | line
        key = str(row.get("key") or _key_of(str(row.get("image") or row["place"])))
        yield Draft(key=key, source=str(row["source"]), make=partial(_read_record, folder, key, row))


def _read_table(path: Path) -> Iterator[dict[str, Any]]:
    return _read_jsonl(path) if path.suffix == ".jsonl" else _read_csv(path)


def _key_of(name: str) -> str:
    """Return a key made of a path. The hash keeps "a/b" and "a_b" apart."""
    readable = re.sub(r"[^A-Za-z0-9_-]+", "_", str(Path(name).with_suffix("")))
    return f"{readable[-100:]}-{hashlib.sha256(name.encode('utf-8', 'surrogatepass')).hexdigest()[:8]}"


def _stamp(folder: Path, row: dict[str, Any]) -> str:
    try:
        status = (folder / str(row.get("image"))).stat()
    except OSError:
        return repr(row)
    return f"{row}{status.st_size}{status.st_mtime_ns}"


def _read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """Yield a line's fields. A line that does not parse is a row without an image: its draft is refused later."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            place = f"{path.name}:{number}"
            try:
                row = json.loads(line.decode("utf-8"))
            except (UnicodeDecodeError, json.JSONDecodeError) as error:
                row = {"broken": str(error)}
            yield {**(row if isinstance(row, dict) else {"broken": "not a JSON object"}), "place": place}


def _read_csv(path: Path) -> Iterator[dict[str, Any]]:
    """Yield one row a picture, its captions gathered from all of its lines."""
    rows: dict[str, dict[str, Any]] = {}
    with io.TextIOWrapper(path.open("rb"), encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        if not {"image", "language", "caption"} <= set(reader.fieldnames or ()):
            raise ConfigError(
                expected="a header with image, language, caption",
                got=f"{reader.fieldnames}",
                do="Name the columns in the first line.",
                where=str(path),
            )
        for line in reader:
            row = rows.setdefault(line["image"], {"image": line["image"], "place": f"{path.name}:{reader.line_num}"})
            row.setdefault("captions", {}).setdefault(line["language"], []).append(line["caption"])
            row.update({name: line[name] for name in ("licence", "source", "identity") if line.get(name)})
    yield from rows.values()


def _refuse(reason: str, expected: str, got: str, where: str) -> NoReturn:
    raise DataError(reason=reason, expected=expected, got=got, do="Correct the corpus, or leave it out.", where=where)


def _read_record(folder: Path, key: str, row: dict[str, Any]) -> ImageTextRecord:
    where = f"{folder}/{row['place']}"
    if "broken" in row:
        _refuse("line_broken", "one JSON object a line, in UTF-8", str(row["broken"]), where)
    name = row.get("image")
    if not isinstance(name, str) or not name:
        _refuse("image_missing", 'a path in the field "image"', repr(name), where)
    image_format = _FORMATS.get(Path(name).suffix.lower())
    if image_format is None:
        _refuse("image_format", f"a file that ends in {', '.join(_FORMATS)}", name, where)
    path = folder / name
    try:
        image = path.read_bytes()
    except OSError as error:
        _refuse("image_missing", "a readable file", f"{path} ({error.strerror})", where)
    check_image(image, image_format, where)
    _check_decodes(image, where)
    return ImageTextRecord(
        key=key,
        image=image,
        image_format=image_format,
        captions=row.get("captions", {}),
        source=str(row["source"]),
        licence=str(row["licence"]),
        identity=str(row.get("identity", "")),
        ids={"path": name},
    )


def _check_decodes(image: bytes, where: str) -> None:
    """Decode a picture once here, rather than fail on it in every epoch."""
    try:
        with Image.open(io.BytesIO(image)) as picture:
            picture.load()
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        _refuse("image_broken", "a picture that decodes", str(error), where)
