"""Emoji: the same ~1,640 things, drawn by several artists, named in 25 languages.

    @iconify-json/ARTIST  (vector drawings)  --.
                                               +--  joined by code points, without U+FE0F
    cldr-annotations      (names, keywords)  --'

Small, openly licensed, and the only such corpus in which both an artist and an image-language combination can be
held out. Flags (look-alikes), skin tones (near-duplicates) and keycaps are left out.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Final

from cclm.rows.guard import mistaken, optional_library, refuse
from cclm.types import ImageTextRecord, TextPair
from shards.corpora.packages import ARTIST_PACKAGES, NAME_PACKAGES, read_package
from shards.parts import LazyRecord, Part

LICENCES: Final = {
    "noto": "Apache-2.0",
    "noto-v1": "Apache-2.0",
    "twemoji": "CC-BY-4.0",
    "emojione": "CC-BY-4.0",
    "emojione-v1": "CC-BY-SA-4.0",
    "fluent-emoji-flat": "MIT",
}
"""SPDX tag by artist: the packages carry no licence file, only this tag (info.json)."""
NAMES_SOURCE: Final = "cldr"
"""Source of the names (Unicode-3.0)."""
_NAMING_ARTISTS: Final = ("noto", "fluent-emoji-flat")
"""Whose lists of code points name the icons of packages without one: the second knows a few more old names."""
_LEFT_OUT: Final = (
    range(0x100),  # keycaps (digits with U+20E3), copyright and registered signs: letters, not drawings
    range(0x1F1E6, 0x1F200),  # regional indicators: flags of countries
    range(0xE0020, 0xE0080),  # tags: flags of regions
    range(0x1F3FB, 0x1F400),  # skin tones
)


def _concept_of(code_points: Sequence[int]) -> str:
    """Return the concept's name: hexadecimal code points without the variation selector U+FE0F, joined by "-"."""
    return "-".join(f"{code:x}" for code in code_points if code != 0xFE0F)


def _is_wanted(concept: str) -> bool:
    return not any(int(code, 16) in codes for code in concept.split("-") for codes in _LEFT_OUT)


@lru_cache(maxsize=4)
def _read_names(packages: Path, languages: tuple[str, ...]) -> dict[str, dict[str, list[str]]]:
    """Return language -> concept -> its name and keywords in CLDR, from both name packages."""
    names: dict[str, dict[str, list[str]]] = {language: {} for language in languages}
    for folder, package in NAME_PACKAGES.items():
        paths = {f"{folder}/{language}/annotations.json": language for language in languages}
        for path, data in read_package(packages, package, paths).items():
            entries = json.loads(data).get(folder, {}).get("annotations", {})
            for characters, entry in entries.items():
                if entry.get("tts"):
                    concept = _concept_of([ord(character) for character in characters])
                    names[paths[path]][concept] = list(dict.fromkeys((entry["tts"][0], *entry.get("default", ()))))
    missing = [language for language in languages if not names[language]]
    if missing:
        do = "Use BCP-47 tags as in CLDR's folder names, for example zh or zh-Hant."
        mistaken("languages that CLDR has names for", ", ".join(missing), do)
    return names


@lru_cache(maxsize=16)
def _read_artist(packages: Path, artist: str) -> tuple[dict[str, Any], dict[str, str]]:
    """Return an artist's icons.json and concept -> icon name.

    Newer packages list their code points (chars.json). In older ones it is empty, and there are only icon names,
    which are slugs of CLDR's English names; for them the lists of _NAMING_ARTISTS are borrowed.
    """
    if artist not in ARTIST_PACKAGES:
        mistaken(f"an artist of {', '.join(ARTIST_PACKAGES)}", repr(artist), "Correct `artists` in the recipe.")
    files = read_package(packages, ARTIST_PACKAGES[artist], ("icons.json", "chars.json"))
    icons: dict[str, Any] = json.loads(files["icons.json"])
    listed: dict[str, str] = json.loads(files.get("chars.json", b"{}"))
    if listed:
        return icons, {_concept_of([int(c, 16) for c in codes.split("-")]): name for codes, name in listed.items()}
    own_names = {*icons["icons"], *icons.get("aliases", {})}
    by_concept: dict[str, str] = {}
    for other in reversed(_NAMING_ARTISTS):
        borrowed = _read_artist(packages, other)[1]
        by_concept |= {concept: name for concept, name in borrowed.items() if name in own_names}
    return icons, by_concept


def _drawings(packages: Path, artist: str) -> dict[str, str]:
    """Return concept -> square SVG document, for the wanted concepts that an artist drew."""
    icons, by_concept = _read_artist(packages, artist)
    drawings = {concept: _drawing(icons, name) for concept, name in by_concept.items() if _is_wanted(concept)}
    return {concept: svg for concept, svg in drawings.items() if svg}


def _drawing(icons: dict[str, Any], name: str) -> str:
    """Return a square SVG document of an icon, following aliases; "" if there is no such icon."""
    for _ in range(5):
        if name in icons["icons"]:
            break
        name = icons.get("aliases", {}).get(name, {}).get("parent", "")
    icon = icons["icons"].get(name)
    if icon is None:
        return ""
    width, height = icon.get("width", icons.get("width", 16)), icon.get("height", icons.get("height", 16))
    side = max(width, height)
    left, top = icon.get("left", 0) - (side - width) / 2, icon.get("top", 0) - (side - height) / 2
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{left:g} {top:g} {side:g} {side:g}">{icon["body"]}</svg>'
    )


def render(svg: str, size: int) -> bytes:
    """Return a `size` × `size` PNG of an SVG document, on white (reason render_failed).
    MissingDependencyError: without resvg-py."""
    resvg_py = optional_library("resvg_py", "it draws the SVG files", "resvg-py")
    look = {"width": size, "height": size, "background": "#ffffff", "skip_system_fonts": True}
    try:
        return bytes(resvg_py.svg_to_bytes(svg_string=svg, **look))
    except ValueError as error:
        refuse("render_failed", "an SVG document", str(error), do="Leave this drawing out.")


def _image_record(artist: str, concept: str, svg: str, size: int, captions: dict[str, list[str]]) -> ImageTextRecord:
    return ImageTextRecord(
        key=f"{artist}_{concept}",
        image=render(svg, size),
        image_format="png",
        captions=captions,
        source=artist,
        licence=LICENCES[artist],
        identity=concept,
        ids={"concept": concept},
    )


def _part(name: str, read: Callable[[], Iterator[LazyRecord]]) -> Part:
    """Return a part whose stamp is a hash of everything that its records are made of."""
    digest = hashlib.sha256()
    for lazy in read():
        assert isinstance(lazy.make, partial)
        digest.update(repr((lazy.key, lazy.make.args)).encode())
    return Part(name=name, read=read, stamp=digest.hexdigest())


@dataclass(frozen=True, kw_only=True)
class EmojiImages:
    """One part per artist, with one image per concept."""

    packages: Path
    """The folder that `fetch-demo` filled."""
    artists: Sequence[str]
    """Who drew them (keys of LICENCES)."""
    languages: Sequence[str]
    """The captions' languages; the first caption is the concept's name."""
    named_in: Sequence[str]
    """Only concepts with a name in all of these."""
    keywords: bool = False
    """The keywords follow the name, as further captions."""
    size: int = 64
    """Width and height in pixels."""

    def parts(self) -> Sequence[Part]:
        """Read the packages."""
        return [_part(artist, partial(self.read, artist)) for artist in self.artists]

    def read(self, artist: str) -> Iterator[LazyRecord]:
        """Yield an artist's drawings, by concept."""
        names = _read_names(self.packages, tuple(sorted({*self.named_in, *self.languages})))
        for concept, svg in sorted(_drawings(self.packages, artist).items()):
            if all(concept in of_one for of_one in names.values()):
                number = None if self.keywords else 1
                captions = {language: names[language][concept][:number] for language in self.languages}
                make = partial(_image_record, artist, concept, svg, self.size, captions)
                yield LazyRecord(key=f"{artist}_{concept}", source=artist, make=make)


@dataclass(frozen=True, kw_only=True)
class EmojiNames:
    """One part, with one group per concept: its name in `language`, paired with that in each of `translations`."""

    packages: Path
    """The folder that `fetch-demo` filled."""
    drawn_by: Sequence[str]
    """Only concepts that one of these artists drew."""
    language: str
    """The language of `text_a`."""
    translations: Sequence[str]
    """The languages of `text_b`."""
    named_in: Sequence[str]
    """Only concepts with a name in all of these."""

    def parts(self) -> Sequence[Part]:
        """Read the packages."""
        return [_part("names", self.read)]

    def read(self) -> Iterator[LazyRecord]:
        """Yield a group per concept."""
        names = _read_names(self.packages, tuple(sorted({self.language, *self.translations, *self.named_in})))
        drawn = {concept for artist in self.drawn_by for concept in _drawings(self.packages, artist)}
        for concept in sorted(drawn):
            if all(concept in of_one for of_one in names.values()):
                pairs = [
                    TextPair(
                        text_a=names[self.language][concept][0],
                        lang_a=self.language,
                        text_b=names[other][concept][0],
                        lang_b=other,
                        source=NAMES_SOURCE,
                        group=concept,
                    )
                    for other in self.translations
                ]
                yield LazyRecord(key=concept, source=NAMES_SOURCE, make=partial(list, pairs))
