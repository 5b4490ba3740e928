"""The emoji corpus on packages of five icons: joining by code points, aliases, what is left out, rendering."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from cclm.errors import ConfigError, DataError
from shards.corpora.emoji import EmojiImages, EmojiNames, render
from shards.corpora.packages import ARTIST_PACKAGES, NAME_PACKAGES, read_package
from tests.unit.shards.tiny_corpora import read_all

SQUARE = '<path fill="#ff0000" d="M0 0h10v10H0z"/>'
NAMES = {
    "en": {
        "🐶": "dog face",
        "❤️": "red heart",
        "🇩🇪": "flag: Germany",
        "👍🏽": "thumbs up: medium skin tone",
        "1️⃣": "keycap: 1",
    },
    "ja": {"🐶": "イヌの顔", "❤️": "赤いハート", "🇩🇪": "旗: ドイツ", "👍🏽": "サムズアップ", "1️⃣": "囲み数字: 1"},
}


def write_package(path: Path, files: dict[str, object]) -> None:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            data = json.dumps(content).encode()
            member = tarfile.TarInfo(f"package/{name}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("packages")
    icons = {"dog-face": {"body": SQUARE}, "heart": {"body": SQUARE, "width": 20}, "flag-germany": {"body": SQUARE}}
    icons |= {"thumbs-up-medium": {"body": SQUARE}, "keycap-1": {"body": SQUARE}, "unnamed": {"body": SQUARE}}
    aliases = {"red-heart": {"parent": "heart"}, "broken-alias": {"parent": "nowhere"}}
    drawn = {"icons": icons, "aliases": aliases, "width": 10, "height": 10}
    codes = {"1f436": "dog-face", "2764-fe0f": "red-heart", "1f1e9-1f1ea": "flag-germany", "1f99e": "unnamed"}
    codes |= {"1f44d-1f3fd": "thumbs-up-medium", "31-fe0f-20e3": "keycap-1", "1f98a": "broken-alias"}
    write_package(folder / ARTIST_PACKAGES["noto"].file_name, {"icons.json": drawn, "chars.json": codes})
    write_package(
        folder / ARTIST_PACKAGES["fluent-emoji-flat"].file_name, {"icons.json": drawn, "chars.json": {"1f436": "dog"}}
    )
    old = {"icons": {"dog": {"body": SQUARE}, "red-heart": {"body": SQUARE}}}
    write_package(folder / ARTIST_PACKAGES["noto-v1"].file_name, {"icons.json": old, "chars.json": {}})
    for top, package in NAME_PACKAGES.items():
        entries = {
            language: {char: {"default": ["pet", name], "tts": [name]} for char, name in names.items()}
            for language, names in NAMES.items()
        }
        if top == "annotationsDerived":
            entries = {"en": {}, "ja": {}}
        write_package(
            folder / package.file_name,
            {f"{top}/{lang}/annotations.json": {top: {"annotations": entry}} for lang, entry in entries.items()},
        )
    return folder


def test_pictures_are_joined_with_names_by_code_points(packages: Any) -> None:
    pytest.importorskip("resvg_py")
    lazy_records = read_all(
        EmojiImages(
            packages=packages, artists=["noto"], languages=["en", "ja"], named_in=["en"], keywords=True, size=16
        ).parts()
    )
    assert [lazy.key for lazy in lazy_records] == ["noto_1f436", "noto_2764"]
    record = lazy_records[0].make()
    assert record.captions == {"en": ["dog face", "pet"], "ja": ["イヌの顔", "pet"]}
    assert (record.source, record.licence, record.identity, record.ids) == (
        "noto",
        "Apache-2.0",
        "1f436",
        {"concept": "1f436"},
    )
    assert record.image == lazy_records[0].make().image
    picture = Image.open(io.BytesIO(record.image)).convert("RGB")
    assert (picture.size, picture.getpixel((8, 8))) == ((16, 16), (255, 0, 0))


def test_a_wide_drawing_is_centred_on_white(packages: Any) -> None:
    pytest.importorskip("resvg_py")
    heart = read_all(
        EmojiImages(packages=packages, artists=["noto"], languages=["en"], named_in=["en"], size=16).parts()
    )[1].make()
    picture = Image.open(io.BytesIO(heart.image)).convert("RGB")
    assert [picture.getpixel(at) for at in ((1, 1), (2, 8), (14, 8))] == [(255, 255, 255), (255, 0, 0), (255, 255, 255)]


def test_a_package_without_code_points_borrows_them_by_icon_name(packages: Any) -> None:
    lazy_records = read_all(
        EmojiImages(packages=packages, artists=["noto-v1"], languages=["en"], named_in=["en"]).parts()
    )
    assert [lazy.key for lazy in lazy_records] == ["noto-v1_1f436", "noto-v1_2764"]


def test_names_without_keywords(packages: Any) -> None:
    lazy = read_all(EmojiImages(packages=packages, artists=["noto"], languages=["ja"], named_in=["en"]).parts())[0]
    assert lazy.make.args[-1] == {"ja": ["イヌの顔"]}


def test_name_pairs(packages: Any) -> None:
    lazy_records = read_all(
        EmojiNames(packages=packages, drawn_by=["noto"], language="en", translations=["ja"], named_in=["en"]).parts()
    )
    assert [lazy.key for lazy in lazy_records] == ["1f436", "2764"]
    (pair,) = lazy_records[1].make()
    assert (pair.text_a, pair.lang_a, pair.text_b, pair.lang_b) == ("red heart", "en", "赤いハート", "ja")
    assert (pair.source, pair.group) == ("cldr", "2764")


def test_wrong_options_and_packages_are_named(packages: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"expected an artist of noto, .*, got 'picasso'"):
        read_all(EmojiImages(packages=packages, artists=["picasso"], languages=["en"], named_in=["en"]).parts())
    with pytest.raises(ConfigError, match=r"expected languages that CLDR has names for, got tlh"):
        read_all(EmojiImages(packages=packages, artists=["noto"], languages=["tlh"], named_in=["en"]).parts())
    with pytest.raises(
        DataError, match=r"expected a fetched package, got no such file. Run `python -m shards fetch-demo"
    ):
        read_all(EmojiImages(packages=tmp_path, artists=["noto"], languages=["en"], named_in=["en"]).parts())
    package = ARTIST_PACKAGES["noto"]
    (tmp_path / package.file_name).write_bytes((packages / package.file_name).read_bytes()[:200])
    with pytest.raises(DataError) as caught:
        read_package(tmp_path, package, ["icons.json"])
    assert caught.value.reason == "package_broken"


def test_a_drawing_that_is_no_svg_is_refused() -> None:
    pytest.importorskip("resvg_py")
    with pytest.raises(DataError) as caught:
        render("<svg", 16)
    assert caught.value.reason == "render_failed"
