"""Language tags: one way from what people, files and data sets call a language to its BCP 47 tag.

    "EN"  "eng"  "en-Latn"  "en_US.UTF-8"  "zho_Hans"  "cmn"  "iw"  "sr@latin"  "simple"
     en     en      en        en-US         zh-Hans     zh    he    sr-Latn    en-simple

Codes, aliases and what exists are those of langcodes (the registries of IANA and CLDR).
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

_LOCALE_SCRIPTS: Final = {"latin": "Latn", "cyrillic": "Cyrl", "devanagari": "Deva", "arabic": "Arab"}
"""What stands behind the "@" of a POSIX locale; other words there ("euro") say nothing about the language."""

_WIKIPEDIA: Final = {
    "simple": "en-simple",
    "be-x-old": "be-tarask",
    "zh-classical": "lzh",
    "roa-rup": "rup",
    "bat-smg": "sgs",
    "fiu-vro": "vro",
    "cbk-zam": "cbk",
}
"""Wikipedia's own names of its languages, as WIT and WikiMatrix have them."""

_KEPT: Final = {"tl": ("tl", "ms"), "tgl": ("tl", "ms"), "sh": ("sh", "hr"), "hbs": ("sh", "hr")}
"""Code -> (its tag, a language of the same usual script). CLDR renames these (to fil and sr-Latn), IANA does not, and
corpora use them; so the other one is looked up in their place."""

_RIGHT_TO_LEFT: Final = frozenset(("Adlm", "Arab", "Armi", "Hebr", "Mand", "Nkoo", "Rohg", "Samr", "Syrc", "Thaa"))


@lru_cache(maxsize=4096)
def language_tag(name: str) -> str | None:
    """Return the BCP 47 tag of a language, or None if the name is not one of a known language. Regions, scripts and
    variants stay ("pt-BR"), a script that the language always has goes ("en-Latn"). A three-letter code becomes the
    two-letter one, also where it names the usual member of a macrolanguage ("cmn", "arb")."""
    from langcodes import Language
    from langcodes.tag_parser import LanguageTagError

    main, _, modifier = name.strip().partition("@")
    tag = main.partition(".")[0].replace("_", "-").lower()
    first, *rest = _WIKIPEDIA.get(tag, tag).split("-")
    if script := _LOCALE_SCRIPTS.get(modifier.lower()):
        rest.insert(0, script)
    elif modifier.lower() == "valencia":
        rest.append("valencia")
    kept, looked_up = _KEPT.get(first, ("", first))
    try:
        found = Language.get("-".join((looked_up, *rest)), normalize=True)
    except LanguageTagError:
        return None
    common = found.prefer_macrolanguage()
    if len(found.language or "") == 3 and len(common.language or "") == 2:
        found = common
    if not found.is_valid():
        return None
    plain: str = found.simplify_script().to_tag()
    return plain.replace(looked_up, kept, 1) if kept else plain


def is_right_to_left(tag: str) -> bool:
    """Tell whether a language is written from right to left, in the script that its tag names or else is usual."""
    from langcodes import Language

    return language_tag(tag) is not None and Language.get(tag).maximize().script in _RIGHT_TO_LEFT


def same_language(tag: str, wanted: str) -> bool:
    """Tell whether a tag is the wanted one or a region or script of it: "en-US" is "en", "zh-Hant" is not "zh-Hans"."""
    return tag == wanted or tag.startswith(f"{wanted}-")
