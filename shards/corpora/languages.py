"""Languages as files name them: in their own names, in locale names, in pairs."""

from __future__ import annotations

import re

_PAIR = re.compile(r"([a-z]{2,8}(?:[_@][A-Za-z]+)?)-([a-z]{2,8}(?:[_@][A-Za-z]+)?)")
_SCRIPTS = {"latin": "Latn", "cyrillic": "Cyrl", "devanagari": "Deva"}


def tag_of(name: str) -> str:
    """Return the BCP-47 tag of a locale's name: "pt_BR" -> "pt-BR", "sr@latin" -> "sr-Latn", "EN-us" -> "en-US"."""
    main, _, modifier = name.partition("@")
    first, *rest = re.split(r"[_-]", main.partition(".")[0])
    subtags = [first.lower()]
    for subtag in (*rest, *([_SCRIPTS.get(modifier.lower(), modifier)] if modifier else [])):
        if len(subtag) == 4 and subtag.isalpha():
            subtags.append(subtag.title())
        else:
            subtags.append(subtag.upper() if len(subtag) == 2 else subtag)
    return "-".join(subtags)


def pair_in(name: str) -> tuple[str, str] | None:
    """Return the two languages, as written, that a file's name holds: "WikiMatrix.de-en.tsv.gz" -> ("de", "en")."""
    for segment in name.split("."):
        found = _PAIR.fullmatch(segment)
        if found:
            return found[1], found[2]
    return None


def same_language(tag: str, wanted: str) -> bool:
    """Tell whether a tag is the wanted one or a region of it: "en-US" is "en", but "zh-Hant" is not "zh-Hans"."""
    return tag_of(tag) == tag_of(wanted) or tag_of(tag).startswith(f"{tag_of(wanted)}-")
