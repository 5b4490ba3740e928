"""GNOME's documentation on a package of two pages: alignment, what is skipped, damage; and the real one."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import Any

import pytest

from cclm.errors import ConfigError, DataError
from shards.corpora.packages import GNOME_DOCS
from shards.corpora.translation_memories import GnomeDocs
from shards.parts import LazyRecord, Skipped

PAGE = """<page xmlns="http://projectmallard.org/1.0/"><info><desc>left out</desc><title>no</title></info>
<title>{0}</title><p>{1} <em>{2}</em>
 {3}</p><steps><item><p>{4}</p></item></steps><!-- c --></page>"""
ENGLISH = ("Dogs", "A", "red", "dog", "Done")
TRANSLATED = {
    "de": PAGE.format("Hunde", "Ein", "roter", "Hund", "Done"),
    "zh_CN": PAGE.format("狗", "一只", "红", "狗", "完成"),
    "fr": PAGE.format(*ENGLISH).replace("<steps>", "<p>un de plus</p><steps>"),
}


def write_deb(folder: Path, pages: dict[str, str]) -> None:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:xz") as archive:
        for name, text in pages.items():
            member = tarfile.TarInfo(f"./usr/share/help/{name}/gnome-help/dogs.page")
            member.size = len(text.encode())
            archive.addfile(member, io.BytesIO(text.encode()))
    members = {"debian-binary": b"2.0", "data.tar.xz": data.getvalue()}
    content = b"!<arch>\n"
    for name, value in members.items():
        content += (
            f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(value):<10}`\n".encode() + value + b"\n" * (len(value) % 2)
        )
    (folder / GNOME_DOCS.file_name).write_bytes(content)


def read(folder: Path, *translations: str) -> tuple[list[tuple[str, str, str]], dict[str, int]]:
    (part,) = GnomeDocs(packages=folder, translations=translations).parts()  # type: ignore[arg-type]
    pairs, skipped = [], dict[str, int]()
    for item in part.read():
        if isinstance(item, Skipped):
            skipped |= item.rows
        else:
            assert isinstance(item, LazyRecord)
            made: Any = item.make()
            pairs += [(pair.text_a, pair.lang_b, pair.text_b) for pair in made]
    return pairs, skipped


def test_paragraphs_are_aligned_by_their_place(tmp_path: Path) -> None:
    write_deb(tmp_path, {"C": PAGE.format(*ENGLISH), **TRANSLATED})
    pairs, skipped = read(tmp_path, "de", "zh", "fr")
    assert pairs == [
        ("Dogs", "de", "Hunde"),
        ("A red dog", "de", "Ein roter Hund"),
        ("Dogs", "zh", "狗"),
        ("A red dog", "zh", "一只 红 狗"),
        ("Done", "zh", "完成"),
    ]
    assert skipped == {"de": 1, "fr": 3}, "untranslated; a page with another number of paragraphs"


def test_what_is_missing_or_broken_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        read(tmp_path, "de")
    assert caught.value.reason == "package_missing" and "fetch-demo --also gnome-user-docs" in caught.value.do
    (tmp_path / GNOME_DOCS.file_name).write_bytes(b"!<arch>\n")
    with pytest.raises(DataError) as caught:
        read(tmp_path, "de")
    assert caught.value.reason == "package_broken"
    write_deb(tmp_path, {"C": PAGE.format(*ENGLISH), **TRANSLATED})
    with pytest.raises(ConfigError, match=r"translated into, got sw. Name some of these: de, fr, zh"):
        read(tmp_path, "sw")
    content = bytearray((tmp_path / GNOME_DOCS.file_name).read_bytes())
    content[len(content) // 2] ^= 255
    (tmp_path / GNOME_DOCS.file_name).write_bytes(content)
    with pytest.raises(DataError) as broken:
        read(tmp_path, "de")
    assert broken.value.reason == "package_broken"
    write_deb(tmp_path, {"C": PAGE.format(*ENGLISH), "de": "<page><p>"})
    with pytest.raises(DataError) as caught:
        read(tmp_path, "de")
    assert (caught.value.reason, caught.value.where) == ("page_broken", "gnome-help/dogs")
