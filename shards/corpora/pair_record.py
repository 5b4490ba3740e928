"""A sentence and its translation, checked: what every parallel-text source yields."""

from __future__ import annotations

import hashlib
from functools import partial

from cclm.types import TextPair
from shards.corpora.refusal import refuse
from shards.guard import shown
from shards.parts import LazyRecord


def lazy_pair(
    *, text_a: str, lang_a: str, text_b: str, lang_b: str, source: str, score: float | None = None, group: str = ""
) -> LazyRecord:
    """Return the record of one pair; a blank text raises a refusal (reason text_empty).

    Args:
        text_a: the sentence that groups: all its translations are one sample, so that none of them is ever taken for
            another one's negative.
        lang_a: its language.
        text_b: its translation.
        lang_b: that one's language.
        source: the corpus.
        score: the corpus's own score of the pair.
        group: the group's name; empty: a hash of `text_a` and `lang_a`.
    """
    if not text_a.strip() or not text_b.strip():
        refuse("text_empty", "two texts that are not blank", f"{shown(text_a)} and {shown(text_b)}")
    group = group or hashlib.sha256(f"{lang_a}\t{text_a}".encode()).hexdigest()[:16]
    pair = TextPair(text_a=text_a, lang_a=lang_a, text_b=text_b, lang_b=lang_b, source=source, group=group, score=score)
    return LazyRecord(key=group, source=source, make=partial(list, [pair]))
