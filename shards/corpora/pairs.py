"""A file of sentence pairs: how to bring your own parallel text.

    pairs.tsv     text_a <TAB> text_b [<TAB> score], all in the two languages that the recipe names
    pairs.jsonl   {"text_a": "…", "lang_a": "en", "text_b": "…", "lang_b": "de", "score": 1.07, "group": "…"}

Lines with the same group (by default: the same text_a in the same language) become one group, so that no two
translations of one sentence are ever taken for each other's negatives.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from cclm.errors import ConfigError, DataError
from cclm.types import TextPair
from shards.draft import Draft


def pair_file(path: Path, lang_a: str = "", lang_b: str = "", source: str = "") -> Iterator[Draft]:
    """Yield one draft per group of pairs.

    Args:
        path: a .tsv or .jsonl file in UTF-8.
        lang_a: language of `text_a`; a line of JSON may name its own.
        lang_b: language of `text_b`; a line of JSON may name its own.
        source: the corpus's name; empty: the file's name.
    """
    path = Path(path)
    read_line = {".tsv": _read_tsv_line, ".jsonl": _read_jsonl_line}.get(path.suffix)
    if read_line is None:
        raise ConfigError(expected="a .tsv or .jsonl file", got=str(path), do="Convert it, or rename it.")
    if path.suffix == ".tsv" and not (lang_a and lang_b):
        raise ConfigError(
            expected="lang_a and lang_b for a .tsv file",
            got="no languages",
            do="Add both to `options`.",
            where=str(path),
        )
    defaults = {"lang_a": lang_a, "lang_b": lang_b, "source": source or path.stem}
    groups: dict[str, list[TextPair]] = {}
    try:
        file = path.open("rb")
    except OSError as error:
        raise ConfigError(
            expected="a readable file", got=str(error.strerror), do="Correct `path`.", where=str(path)
        ) from error
    with file:
        for number, line in enumerate(file, 1):
            try:
                pair = _pair_of(defaults | read_line(line.decode("utf-8").rstrip("\r\n")))
            except (ValueError, TypeError, KeyError) as error:
                place = f"{path.name}:{number}"
                yield Draft(key=place, source=defaults["source"], make=partial(_refuse, str(path), number, str(error)))
            else:
                groups.setdefault(pair.group, []).append(pair)
    for group, pairs in groups.items():
        yield Draft(key=group, source=defaults["source"], make=partial(list, pairs), stamp=repr(pairs))


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
