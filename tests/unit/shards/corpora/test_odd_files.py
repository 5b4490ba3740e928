"""Files as people have them: other encodings, marks, ends of lines, packages, namespaces, quotes that never close."""

from __future__ import annotations

import gzip
import json
import lzma
import struct
import zipfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest

from cclm.errors import ConfigError, DataError
from cclm.rows.lines import numbered_lines, sound_lines
from shards.corpora.image_tables import load_cell
from shards.corpora.table import corpus_of
from tests.unit.shards.corpora.every_corpus import TMX
from tests.unit.shards.corpora.tiny_files import (
    build,
    made_and_refused,
    pairs_of,
    picture,
    rows_skipped,
    write_pictures,
)

PAIR = {"lang_a": "en", "lang_b": "de"}


def test_lines_end_at_newlines_only(tmp_path: Path) -> None:
    (tmp_path / "t").write_bytes("\ufeffa\u2028b\x0bc\x85d\re\r\n\nlast".encode())
    assert list(numbered_lines(tmp_path / "t")) == [(1, "a\u2028b\x0bc\x85d\re"), (2, ""), (3, "last")]
    assert list(sound_lines(tmp_path / "t")) == ["a\u2028b\x0bc\x85d\re", "", "last"]


def test_a_line_without_an_end_costs_itself_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cclm.rows.lines.LINE_BYTES", 8)
    (tmp_path / "t").write_bytes(b"short\n" + b"x" * 100 + b"\nlast\n")
    lines = [line.reason if isinstance(line, DataError) else line for _, line in numbered_lines(tmp_path / "t")]
    assert lines == ["short", "line_broken", "last"]
    (tmp_path / "t").write_bytes(b"x" * 8 * 70)
    with pytest.raises(DataError) as caught:
        list(numbered_lines(tmp_path / "t"))
    assert caught.value.reason == "file_broken", "a bomb is not read to its end"


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        ("a\tb\n".encode("utf-16"), "UTF-16"),
        ("a\tb\n".encode("utf-32"), "UTF-32"),
        (gzip.compress(b"a\tb\n", mtime=0), "gzip"),
        (lzma.compress(b"a\tb\n"), "xz"),
    ],
    ids=["UTF-16", "UTF-32", "gzip", "xz"],
)
def test_another_encoding_is_refused_by_name(tmp_path: Path, data: bytes, kind: str) -> None:
    (tmp_path / "p.tsv").write_bytes(data)
    (error,) = made_and_refused(corpus_of("pair_file", {"path": str(tmp_path), **PAIR}))[1]
    assert error.reason == "file_encoding" and kind in error.got
    with pytest.raises(ConfigError, match=kind):
        list(sound_lines(tmp_path / "p.tsv"))


def test_latin_1_is_refused_by_line(tmp_path: Path) -> None:
    (tmp_path / "p.tsv").write_bytes("a\tä\n".encode("latin-1") + b"a\tb\n")
    made, refused = build("pair_file", path=str(tmp_path), **PAIR)
    assert pairs_of(made) == [("en", "a", "de", "b")] and refused == {"line_broken": 1}


@pytest.mark.parametrize("name", ["p.tsv", "p.csv", "p.jsonl"])
def test_a_byte_order_mark_is_no_text(tmp_path: Path, name: str) -> None:
    texts = {"p.tsv": "A\tB\n", "p.csv": "text_a,text_b\nA,B\n", "p.jsonl": '{"text_a": "A", "text_b": "B"}\n'}
    (tmp_path / name).write_text(texts[name], encoding="utf-8-sig")
    assert pairs_of(build("pair_file", path=str(tmp_path), **PAIR)[0]) == [("en", "A", "de", "B")]


def test_a_byte_order_mark_of_moses_gettext_and_coco(tmp_path: Path) -> None:
    for side in ("de", "en"):
        (tmp_path / f"X.de-en.{side}").write_text("one\ntwo\n", encoding="utf-8-sig")
    assert pairs_of(build("moses", path=str(tmp_path))[0])[0] == ("de", "one", "en", "one")
    (tmp_path / "a.po").write_text('msgid "a"\nmsgstr "b"\n', encoding="utf-8-sig")
    assert pairs_of(build("gettext", path=str(tmp_path / "a.po"), lang_b="de")[0]) == [("en", "a", "de", "b")]
    write_pictures(tmp_path / "images", ["1.jpg"])
    document = {"images": [{"id": 1, "file_name": "1.jpg"}], "annotations": [{"image_id": 1, "caption": "x"}]}
    (tmp_path / "c.json").write_text(json.dumps(document), encoding="utf-8-sig")
    made, refused = build("coco", captions={"en": str(tmp_path / "c.json")}, images=str(tmp_path / "images"))
    assert len(made) == 1 and not refused


def test_a_quote_that_never_closes_is_told_with_its_line(tmp_path: Path) -> None:
    text = 'text_a,text_b\na,b\n"c\nd",e\nf,"never closed\ng,h\ni,j\n'
    (tmp_path / "p.csv").write_text(text)
    made, refused = made_and_refused(corpus_of("pair_file", {"path": str(tmp_path), **PAIR}))
    assert [pair[1] for pair in pairs_of(made)] == ["a", "c\nd"]
    (error,) = refused
    assert error.reason == "file_broken" and error.got.endswith("line 5")


def test_a_quote_that_closes_in_a_later_row_costs_these_rows_only(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text('text_a,text_b\na,"never closed\nb,"x"\nc,d\n')
    made, refused = build("pair_file", path=str(tmp_path), **PAIR)
    assert [pair[1] for pair in pairs_of(made)] == ["c"] and refused == {"line_broken": 1}


def test_a_bare_carriage_return_stays_in_its_cell(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_bytes(b'text_a,text_b\r\na\rb,"c\r\nd\re"\r\n')
    assert pairs_of(build("pair_file", path=str(tmp_path), **PAIR)[0]) == [("en", "a\rb", "de", "c\r\nd\re")]


# Captions and cells of other types


def test_captions_that_are_a_text_are_one_caption(tmp_path: Path) -> None:
    write_pictures(tmp_path, ["a.jpg"])
    region = {"box": [0, 0, 4, 4], "captions": {"en": "a corner"}, "attributes": {"en": "red"}}
    lines: list[Any] = [
        {"image": "a.jpg", "captions": {"en": "A red box"}, "regions": [region]},
        {"image": "a.jpg", "captions": "A red box"},
        {"image": "a.jpg", "captions": {"en": {"raw": "x"}}},
        {"image": "a.jpg", "captions": {"en": "x"}, "source": ["y"]},
        {"image": "a.jpg", "captions": {"en": "x"}, "licence": 7},
        {"image": "a.jpg", "captions": {"en": "x"}, "regions": [{"box": "0123", "captions": {"en": "x"}}]},
        {"image": "a.jpg", "captions": {"en": "x"}, "regions": {"box": [0, 0, 1, 1]}},
        {"image": ["a.jpg"], "captions": {"en": "x"}},
    ]
    (tmp_path / "captions.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (record,), refused = build("image_folder", folder=str(tmp_path))
    assert record.captions == {"en": ["A red box"]}
    assert (record.regions[0].captions, record.regions[0].attributes) == ({"en": ["a corner"]}, {"en": ["red"]})
    assert refused == {"language_unknown": 1, "line_broken": 5, "image_missing": 1}


def test_an_empty_language_cell_costs_its_caption_only(tmp_path: Path) -> None:
    write_pictures(tmp_path, ["a.jpg"])
    rows = ["EN,box", ",nothing", "klingon,x", "pt_BR,caixa", "eng,b2"]
    (tmp_path / "captions.csv").write_text("image,language,caption\n" + "".join(f"a.jpg,{row}\n" for row in rows))
    (record,), refused = build("image_folder", folder=str(tmp_path))
    assert record.captions == {"en": ["box", "b2"], "pt-BR": ["caixa"]} and refused == {"language_unknown": 2}


def test_captions_of_coco_that_are_no_texts(tmp_path: Path) -> None:
    write_pictures(tmp_path, ["1.jpg"])
    captions = ["a violet box", None, ["two", "boxes"], 7.5, {"raw": "x"}, True]
    annotations = [{"image_id": 1, "id": n, "caption": caption} for n, caption in enumerate(captions)]
    document = {"images": [{"id": 1, "file_name": "1.jpg"}], "annotations": annotations}
    (tmp_path / "c.json").write_text(json.dumps(document))
    (record,), refused = build("coco", captions={"en": str(tmp_path / "c.json")}, images=str(tmp_path))
    assert record.captions == {"en": ["a violet box"]} and refused == {"line_broken": 5}


def test_half_a_character_costs_its_line(tmp_path: Path) -> None:
    row = {"text_a": "A", "lang_a": "en", "text_b": "B", "lang_b": "de", "source": "s", "group": "g"}
    lines = [json.dumps(row | {name: "x\ud83d"}) for name in row] + [json.dumps(row)]
    (tmp_path / "p.jsonl").write_text("\n".join(lines))
    made, refused = build("pair_file", path=str(tmp_path))
    assert len(made) == 1 and refused == {"text_encoding": 4, "language_unknown": 2}


def test_a_map_of_captions_as_arrow_has_them(tmp_path: Path) -> None:
    maps = pa.array([[("en", "box"), ("de", "Kiste")], [("en", "case")], None], pa.map_(pa.string(), pa.string()))
    pa.parquet.write_table(pa.table({"image": [picture()] * 3, "t": maps}), tmp_path / "a.parquet")
    made, refused = build("parquet_images", path=str(tmp_path), captions={"text": "t"}, source="x")
    assert [record.captions for record in made] == [{"en": ["box"], "de": ["Kiste"]}, {"en": ["case"]}]
    assert refused == {"captions_empty": 1}


def test_a_cell_of_parquet_that_cannot_be_had_costs_its_row(tmp_path: Path) -> None:
    texts = pa.StringArray.from_buffers(3, pa.py_buffer(struct.pack("4i", 0, 1, 2, 3)), pa.py_buffer(b"a\xffc"))
    pa.parquet.write_table(pa.table({"text_a": texts, "text_b": ["x", "y", "z"]}), tmp_path / "p.parquet")
    made, refused = build("pair_file", path=str(tmp_path), **PAIR)
    assert [pair[1] for pair in pairs_of(made)] == ["a", "c"] and refused == {"line_broken": 1}


def test_a_row_group_of_pictures_is_never_whole_in_memory(tmp_path: Path) -> None:
    """One of more than 2 GB cannot even be had as one array."""
    image, number = bytes(range(256)) * 256, 400
    cells = pa.StructArray.from_arrays([pa.array([image] * number), pa.array(["x"] * number)], ["bytes", "path"])
    options = {"row_group_size": number, "use_dictionary": False, "compression": "none", "write_batch_size": 1}
    pa.parquet.write_table(pa.table({"image": cells}), tmp_path / "a.parquet", data_page_size=1 << 16, **options)
    assert pa.parquet.ParquetFile(tmp_path / "a.parquet").num_row_groups == 1
    before = pa.total_allocated_bytes()
    for index in (0, 1, 20, 21, 399, 5):
        assert load_cell(tmp_path / "a.parquet", index, "image", None) == image
        assert pa.total_allocated_bytes() - before < number * len(image) / 4


# Parallel text


def test_sides_are_paired_within_one_folder(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        for side in ("de", "en"):
            (tmp_path / folder / f"X.de-en.{side}").write_text(f"{folder} {side}\n")
    pairs = pairs_of(build("moses", path=str(tmp_path))[0])
    assert pairs == [("de", "a de", "en", "a en"), ("de", "b de", "en", "b en")]
    (tmp_path / "b" / "X.de-en.de").unlink()
    with pytest.raises(ConfigError, match=r"only one side: b/X\.de-en\.en"):
        corpus_of("moses", {"path": str(tmp_path)}).parts()
    with zipfile.ZipFile(tmp_path / "b" / "z.zip", "w") as archive:
        archive.writestr("sub/X.de-en.de", "x\n")
    with pytest.raises(ConfigError, match=r"only one side: z\.zip/sub/X\.de-en\.de"):
        corpus_of("moses", {"path": str(tmp_path / "b" / "z.zip")}).parts()


@pytest.mark.parametrize("stem", ["TED2020.de-en", "bible-uedin.de-en", "tldr-pages.de-en", "giga-fren-de-en", "de-en"])
def test_zips_of_corpora_with_hyphens(tmp_path: Path, stem: str) -> None:
    with zipfile.ZipFile(tmp_path / f"{stem.replace('.', '-')}.txt.zip", "w") as archive:
        for name, text in (("README", "x"), (f"{stem}.de", "Hund\n"), (f"{stem}.en", "dog\n")):
            archive.writestr(name, text)
            archive.writestr(f"__MACOSX/._{name}", "x")
    made, refused = build("moses", path=str(tmp_path), anchor="en")
    assert pairs_of(made) == [("en", "dog", "de", "Hund")] and not refused
    assert made[0][0].source == (stem.rpartition(".")[0] or stem)


def test_a_zip_that_python_cannot_unpack_is_refused_by_name(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "X.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for side in ("de", "en"):
            archive.writestr(f"X.de-en.{side}", "x\n" * 9)
    data = (tmp_path / "X.zip").read_bytes()
    for marker, at in ((b"PK\x03\x04", 8), (b"PK\x01\x02", 10)):  # the compression's number: 8 is deflate, 9 deflate64
        pieces = data.split(marker)
        data = marker.join([pieces[0], *(piece[: at - 4] + b"\x09" + piece[at - 3 :] for piece in pieces[1:])])
    (tmp_path / "X.zip").write_bytes(data)
    (error,) = made_and_refused(corpus_of("moses", {"path": str(tmp_path)}))[1]
    assert (error.reason, error.got) == ("file_broken", "deflate64") and "X.zip" in error.where


def test_tmx_with_a_namespace_and_regions(tmp_path: Path) -> None:
    text = TMX.replace("<tmx ", '<tmx xmlns="http://www.lisa.org/tmx14" ')
    (tmp_path / "a.tmx").write_text(text)
    made, refused = build("tmx", path=str(tmp_path), **PAIR | {"lang_b": ["de"]})
    assert pairs_of(made) == [("en", "A dog&x", "de", "Hund"), ("en", "A cat", "de", "Katze")] and not refused


def test_tmx_with_html_entities_and_several_files_in_a_zip(tmp_path: Path) -> None:
    text = TMX.replace('<!DOCTYPE tmx [<!ENTITY e "x">]>', '<!DOCTYPE tmx SYSTEM "tmx14.dtd">').replace(
        "&e;", "&nbsp;&ouml;"
    )
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("one.tmx", text)
        archive.writestr("two.TMX", text.replace('xml:lang="de"', 'xml:lang=""'))
    made, refused = build("tmx", path=str(tmp_path), lang_a="en", lang_b=["de"])
    assert pairs_of(made)[0] == ("en", "A dog&\xa0ö", "de", "Hund") and refused == {"language_missing": 2}
    assert rows_skipped("tmx", path=str(tmp_path), lang_a="en", lang_b=["de"]) == {}


@pytest.mark.parametrize(
    "declared",
    [
        "".join(f'<!ENTITY {chr(98 + n)} "{f"&{chr(97 + n)};" * 10}">' for n in range(9)),
        f'<!ENTITY b "{"x" * 100_000}">',
        '<!ENTITY % p "x">',
    ],
)
def test_entities_that_are_bombs_are_refused(tmp_path: Path, declared: str) -> None:
    (tmp_path / "a.tmx").write_text(TMX.replace('<!ENTITY e "x">', f'<!ENTITY e "x"><!ENTITY a "lol">{declared}'))
    made, refused = build("tmx", path=str(tmp_path), lang_a="en", lang_b=["de"])
    assert made == [] and refused == {"file_broken": 1}


def test_languages_of_a_recipe_are_normalised_and_checked() -> None:
    corpus: Any = corpus_of("pair_file", {"path": "p", "lang_a": "EN", "lang_b": "iw"})
    assert (corpus.lang_a, corpus.lang_b) == ("en", "he")
    wit: Any = corpus_of("wit", {"path": "p", "pixels": "q", "languages": ["eng", "zh_TW"]})
    assert list(wit.languages) == ["en", "zh-TW"]
    for wrong in ("english", "xx", False):
        with pytest.raises(ConfigError, match="expected a language"):
            corpus_of("pair_file", {"path": "p", "lang_a": wrong, "lang_b": "de"})


def test_languages_that_are_keys_of_a_recipe_are_normalised_and_checked(tmp_path: Path) -> None:
    write_pictures(tmp_path, ["1.jpg"])
    (tmp_path / "names").write_text("1.jpg\n")
    (tmp_path / "t").write_text("eins\n")
    options: dict[str, Any] = {"names": str(tmp_path / "names"), "images": str(tmp_path)}
    made, _ = build("aligned_lines", **options, captions={"DEU": str(tmp_path / "t")})
    assert made[0].captions == {"de": ["eins"]}
    for wrong in ({"german": "t"}, {"de": "t", "deu": "t"}, {False: "t"}):
        with pytest.raises(ConfigError, match="expected languages as keys, each once"):
            corpus_of("aligned_lines", options | {"captions": {k: str(tmp_path / v) for k, v in wrong.items()}}).parts()
