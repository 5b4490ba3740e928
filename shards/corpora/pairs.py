"""A file of sentence pairs: how to bring your own parallel text.

    pairs.tsv     text_a <TAB> text_b [<TAB> score], all in the two languages that the recipe names
    pairs.jsonl   {"text_a": "…", "lang_a": "en", "text_b": "…", "lang_b": "de", "score": 1.07, "group": "…"}

Lines with the same group (by default: the same text_a in the same language) become one group, so that no two
translations of one sentence are ever taken for each other's negatives.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

from cclm.errors import ConfigError, DataError
from cclm.types import TextPair
from shards.draft import Draft, Part, file_stamp


def pair_file(path: Path, lang_a: str = "", lang_b: str = "", source: str = "") -> Sequence[Part]:
    """Return one part, with one draft per line; lines of one group come together when the set is built.

    Args:
        path: a .tsv or .jsonl file in UTF-8.
        lang_a: language of `text_a`; a line of JSON may name its own.
        lang_b: language of `text_b`; a line of JSON may name its own.
        source: the corpus's name; empty: the file's name.
    """
    path = Path(path)
    if path.suffix not in _LINE_READERS:
        raise ConfigError(expected="a .tsv or .jsonl file", got=str(path), do="Convert it, or rename it.")
    if path.suffix == ".tsv" and not (lang_a and lang_b):
        raise ConfigError(
            expected="lang_a and lang_b for a .tsv file",
            got="no languages",
            do="Add both to `options`.",
            where=str(path),
        )
    defaults = {"lang_a": lang_a, "lang_b": lang_b, "source": source or path.stem}
    return [Part(name=path.name, read=partial(_drafts, path, defaults), stamp=file_stamp(path))]


def _drafts(path: Path, defaults: dict[str, str]) -> Iterator[Draft]:
    read_line = _LINE_READERS[path.suffix]
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                pair = _pair_of(defaults | read_line(line.decode("utf-8").rstrip("\r\n")))
            except (ValueError, TypeError, KeyError) as error:
                make: Callable[[], list[TextPair]] = partial(_refuse, str(path), number, str(error))
                yield Draft(key=f"{path.name}:{number}", source=defaults["source"], make=make)
            else:
                yield Draft(key=pair.group, source=pair.source, make=partial(list, [pair]))


def _read_tsv_line(line: str) -> dict[str, Any]:
    cells = line.split("\t")
    if len(cells) not in (2, 3):
        raise ValueError(f"{len(cells)} cells")
    return {"text_a": cells[0], "text_b": cells[1], "score": float(cells[2]) if len(cells) == 3 else None}


def _read_jsonl_line(line: str) -> dict[str, Any]:
    row = json.loads(line)
    if not isinstance(row, dict):
        raise ValueError("not a JSON object")
    return row


def _pair_of(row: dict[str, Any]) -> TextPair:
    texts = {name: row[name] for name in ("text_a", "lang_a", "text_b", "lang_b", "source")}
    if not all(isinstance(text, str) and text.strip() for text in texts.values()):
        raise ValueError(f"an empty text or language in {texts}")
    digest = hashlib.sha256(f"{row['lang_a']}\t{row['text_a']}".encode()).hexdigest()[:16]
    score = row.get("score")
    return TextPair(**texts, score=None if score is None else float(score), group=str(row.get("group") or digest))


def _refuse(path: str, number: int, why: str) -> list[TextPair]:
    raise DataError(
        reason="line_broken",
        expected="text_a, text_b (and score) on a line, in UTF-8",
        got=why,
        do="Correct the line, or leave it out.",
        where=f"{path}:{number}",
    )


_LINE_READERS: Final[dict[str, Callable[[str], dict[str, Any]]]] = {".tsv": _read_tsv_line, ".jsonl": _read_jsonl_line}
"""By the file's suffix."""
