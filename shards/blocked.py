"""A list of words and phrases that no text may hold."""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from shards.corpora.lines import sound_lines

_WORD = re.compile(r"\w+")
# Scripts that are written without spaces between words: there a word is looked for anywhere in the text.
_UNSPACED = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]")


class _Blocked(NamedTuple):
    phrases: frozenset[tuple[str, ...]]
    longest: int
    anywhere: tuple[str, ...]


def find_blocked(text: str, path: str) -> str | None:
    """Return the first word or phrase of a list that a text holds: whole words, whatever their case.

    Args:
        text: the text.
        path: the list: UTF-8, one word or phrase a line; lines that begin with # are comments.
    """
    blocked = _read(path)
    plain = _plain(text)
    words = _WORD.findall(plain)
    for start in range(len(words)):
        for length in range(1, min(blocked.longest, len(words) - start) + 1):
            if tuple(words[start : start + length]) in blocked.phrases:
                return " ".join(words[start : start + length])
    return next((word for word in blocked.anywhere if word in plain), None)


@lru_cache(maxsize=4)
def _read(path: str) -> _Blocked:
    lines = list(sound_lines(Path(path)))
    wanted = [_plain(line.strip()) for line in lines if line.strip() and not line.startswith("#")]
    phrases = {tuple(_WORD.findall(line)) for line in wanted if not _UNSPACED.search(line)} - {()}
    anywhere = tuple(sorted(line for line in wanted if _UNSPACED.search(line)))
    return _Blocked(frozenset(phrases), max((len(phrase) for phrase in phrases), default=0), anywhere)


def _plain(text: str) -> str:
    return unicodedata.normalize("NFKC", text).casefold()
