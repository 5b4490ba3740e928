"""Each parallel-text source on lines of its true format, sound and broken."""

from __future__ import annotations

import bz2
import gzip
import json
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest

from cclm.errors import ConfigError, DataError
from shards.corpora.pair_file import pair_in
from shards.corpora.table import corpus_of
from shards.parts import UnwantedError
from tests.unit.shards.corpora.tiny_files import build, made_and_refused, pairs_of, rows_skipped

WIKI = (
    "1.2104\tDer Hund bellt.\tThe dog barks.\n"
    '1.0400\tEr sagte: "Nein"\tHe said: "No"\n'
    "1.0399\tEine Katze.\tA car.\n"
    "1.3\tnur zwei\n"
    "hoch\ta\tb\n"
    "nan\ta\tb\n"
    "1.5\t \tb\n"
)


def test_wikimatrix_with_its_threshold(tmp_path: Path) -> None:
    path = tmp_path / "WikiMatrix.de-en.tsv.gz"
    path.write_bytes(gzip.compress(WIKI.encode()))
    made, refused = build("margin_file", path=str(path), threshold=1.04, anchor="en")
    assert pairs_of(made) == [
        ("en", "The dog barks.", "de", "Der Hund bellt."),
        ("en", 'He said: "No"', "de", 'Er sagte: "Nein"'),
    ]
    assert made[0][0].score == 1.2104 and made[0][0].source == "WikiMatrix.de-en"
    assert refused == {"score_low": 1, "line_broken": 3, "text_empty": 1}


def test_a_low_score_is_left_out_and_a_broken_line_is_bad(tmp_path: Path) -> None:
    """So that a threshold does not make a build fail at max_bad_fraction."""
    path = tmp_path / "WikiMatrix.de-en.tsv"
    path.write_text(WIKI)
    (part,) = corpus_of("margin_file", {"path": str(path)}).parts()
    kinds = []
    for lazy in part.read():
        try:
            lazy.make()
        except DataError as error:
            kinds.append((error.reason, type(error)))
    assert ("score_low", UnwantedError) in kinds and ("line_broken", DataError) in kinds


def test_margin_files_of_other_columns_and_languages(tmp_path: Path) -> None:
    path = tmp_path / "mined.tsv"
    path.write_text("1.1\ta\tb\thttp://x\n")
    with pytest.raises(ConfigError, match="expected two languages, got no pair such as de-en in the file's name"):
        corpus_of("margin_file", {"path": str(path)}).parts()
    corpus = corpus_of("margin_file", {"path": str(path), "lang_a": "en", "lang_b": "de"})
    with pytest.raises(ConfigError, match="expected the columns score, text_a, text_b, got a first line of 4"):
        made_and_refused(corpus)
    columns = ["score", "text_a", "text_b", "url"]
    assert build("margin_file", path=str(path), lang_a="en", lang_b="de", columns=columns)[1] == {}


def test_moses_files_and_a_zip_of_them(tmp_path: Path) -> None:
    english, german = b"a dog\ntwo\r\n\nfour\nfive\n", "ein Hund\nzwei\x85\nleer\n".encode() + b"\xff\n"
    (tmp_path / "TED.v1.de-en.en").write_bytes(english)
    (tmp_path / "TED.v1.de-en.de").write_bytes(german)
    (tmp_path / "README").write_text("x")
    expected = [("en", "a dog", "de", "ein Hund"), ("en", "two", "de", "zwei\x85")]
    made, refused = build("moses", path=str(tmp_path), anchor="en")
    assert pairs_of(made) == expected and made[0][0].source == "TED.v1"
    assert refused == {"text_empty": 1, "line_broken": 1, "line_unmatched": 1}
    archive = tmp_path / "de-en.txt.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as zipped:
        for name in ("TED.v1.de-en.en", "TED.v1.de-en.de", "README"):
            zipped.write(tmp_path / name, name)
    assert build("moses", path=str(archive), anchor="en") == (made, refused)
    assert pairs_of(build("moses", path=str(archive))[0])[0] == ("de", "ein Hund", "en", "a dog")
    files = {"en": str(tmp_path / "TED.v1.de-en.en"), "de": str(tmp_path / "TED.v1.de-en.de")}
    assert pairs_of(build("moses", files=files, source="TED.v1")[0]) == expected
    with pytest.raises(ConfigError, match="expected a file in fr and in another language, got en, de"):
        corpus_of("moses", {"files": files, "anchor": "fr"}).parts()
    with pytest.raises(ConfigError, match="expected a pair with fr, got "):
        corpus_of("moses", {"path": str(archive), "anchor": "fr"}).parts()
    with pytest.raises(ConfigError, match=r"expected two files such as NAME.de-en.de and NAME.de-en.en"):
        corpus_of("moses", {"path": str(tmp_path / "README")}).parts()
    archive.unlink()
    (tmp_path / "Books.fr-en.en").write_bytes(english)
    with pytest.raises(ConfigError, match=r"got only one side: Books.*move away what has no partner"):
        corpus_of("moses", {"path": str(tmp_path)}).parts()


def test_a_zip_that_was_damaged(tmp_path: Path) -> None:
    archive = tmp_path / "de-en.txt.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as zipped:
        zipped.writestr("X.de-en.en", "".join(f"line {n}\n" for n in range(3_000)))
        zipped.writestr("X.de-en.de", "".join(f"Zeile {n}\n" for n in range(3_000)))
    data = bytearray(archive.read_bytes())
    data[2_000:2_040] = bytes(40)
    archive.write_bytes(bytes(data))
    made, refused = build("moses", path=str(archive))
    assert refused["file_broken"] == 1 and len(made) < 3_000
    archive.write_bytes(bytes(data)[:1_000])
    assert build("moses", path=str(archive)) == ([], {"file_broken": 1})


TMX = """<?xml version="1.0" encoding="UTF-8"?>
<!DOCTYPE tmx SYSTEM "tmx14.dtd">
<tmx version="1.4"><header creationtool="x" segtype="sentence" adminlang="en" srclang="en" datatype="PlainText"/><body>
<tu tuid="1"><tuv xml:lang="EN-US"><seg>A <bpt i="1">&lt;b&gt;</bpt>big<ept i="1">&lt;/b&gt;</ept> dog.</seg></tuv>
<tuv xml:lang="de"><seg>Ein großer Hund.</seg></tuv><tuv xml:lang="fr"><seg>Un chien.</seg></tuv></tu>
<tu><tuv lang="de"><seg>Nur deutsch.</seg></tuv></tu>
<tu><tuv xml:lang="en"><seg>Cat &amp; mouse</seg></tuv><tuv xml:lang="de"><seg> </seg></tuv></tu>
"""


@pytest.mark.parametrize("packed", ["", ".gz", ".zip"])
def test_tmx_as_a_stream_with_a_broken_tail(tmp_path: Path, packed: str) -> None:
    path = tmp_path / f"memory.tmx{packed}"
    if packed == ".zip":
        with zipfile.ZipFile(path, "w") as zipped:
            zipped.writestr("memory.tmx", TMX)
    else:
        path.write_bytes(gzip.compress(TMX.encode()) if packed else TMX.encode())
    made, refused = build("tmx", path=str(path), lang_a="en", lang_b=["de", "fr"])
    assert pairs_of(made) == [
        ("en", "A big dog.", "de", "Ein großer Hund."),
        ("en", "A big dog.", "fr", "Un chien."),
    ]
    assert len({pair.group for group in made for pair in group}) == 1
    assert refused == {"language_missing": 1, "text_empty": 1, "file_broken": 1}


def test_a_whole_tmx_file_has_no_broken_tail(tmp_path: Path) -> None:
    path = tmp_path / "memory.tmx"
    path.write_text(TMX + "</body></tmx>")
    assert build("tmx", path=str(path), lang_a="en", lang_b=["fr"])[1] == {"language_missing": 2}
    assert rows_skipped("tmx", path=str(path), lang_a="en", lang_b=["fr"]) == {("memory", "de"): 1}
    path.write_text(TMX.replace('"fr"', '"en-GB"') + "</body></tmx>")
    assert rows_skipped("tmx", path=str(path), lang_a="en", lang_b=["de"]) == {("memory", "en-GB"): 1}
    path.write_text("no XML")
    assert build("tmx", path=str(path), lang_a="en", lang_b=["fr"]) == ([], {"file_broken": 1})


@pytest.mark.slow
def test_tatoeba_is_joined_in_both_directions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sentences = (
        '1\teng\tA dog.\n2\tdeu\tEin Hund.\n3\tfra\tUn chien.\n4\teng\tDogs.\n5\tjpn\t犬\n6\tdeu\tAlle "Hunde".\nbad\n'
    )
    (tmp_path / "sentences.csv").write_text(sentences, encoding="utf-8")
    (tmp_path / "links.tsv.bz2").write_bytes(bz2.compress(b"1\t2\n2\t1\n3\t1\n1\t5\n6\t4\n6\t9\n1\t4\n"))
    options = {
        "sentences": str(tmp_path / "sentences.csv"),
        "links": str(tmp_path / "links.tsv.bz2"),
        "languages": {"eng": "en", "deu": "de", "fra": "fr"},
        "anchor": "en",
    }
    made, refused = build("tatoeba", **options)
    expected = {
        ("en", "A dog.", "de", "Ein Hund."),
        ("en", "A dog.", "fr", "Un chien."),
        ("en", "Dogs.", "de", 'Alle "Hunde".'),
    }
    assert set(pairs_of(made)) == expected and len(made) == 3 and refused == {"line_broken": 1}
    monkeypatch.setattr("shards.parts.grouped.__defaults__", (2, 0))
    assert set(pairs_of(build("tatoeba", **options)[0])) == expected
    assert rows_skipped("tatoeba", **options) == {("tatoeba", "jpn"): 1}
    fewer = options | {"languages": {"eng": "en", "fra": "fr"}}
    assert rows_skipped("tatoeba", **fewer) == {("tatoeba", "jpn"): 1, ("tatoeba", "deu"): 2}
    with pytest.raises(ConfigError, match="expected an anchor among the languages"):
        corpus_of("tatoeba", options | {"anchor": "it"}).parts()


PO = """msgid ""
msgstr ""
"Language: pt_BR\\n"
"Content-Type: text/plain; charset=UTF-8\\n"
"Plural-Forms: nplurals=2; plural=(n != 1);\\n"

#: views.py:7
msgid "Delete the dog?"
msgstr "Apagar o cachorro?"

#, fuzzy
msgid "A cat"
msgstr "Um gato?"

msgid "Not yet"
msgstr ""

msgid "%d dog"
msgid_plural "%d dogs"
msgstr[0] "%d cachorro"
msgstr[1] "%d cachorros"

#~ msgid "Gone"
#~ msgstr "Foi"
"""


def test_gettext_catalogues(tmp_path: Path) -> None:
    polib = pytest.importorskip("polib")
    path = tmp_path / "locale" / "pt_BR" / "LC_MESSAGES" / "django.po"
    path.parent.mkdir(parents=True)
    path.write_text(PO, encoding="utf-8")
    made, refused = build("gettext", path=str(tmp_path))
    assert pairs_of(made) == [
        ("en", "Delete the dog?", "pt-BR", "Apagar o cachorro?"),
        ("en", "%d dog", "pt-BR", "%d cachorro"),
        ("en", "%d dogs", "pt-BR", "%d cachorros"),
    ]
    assert refused == {"fuzzy": 1, "untranslated": 1} and made[0][0].source == "django"
    compiled = tmp_path / "compiled.mo"
    polib.pofile(str(path)).save_as_mofile(str(compiled))
    assert sorted(pairs_of(build("gettext", path=str(compiled))[0])) == sorted(pairs_of(made))
    compiled.write_bytes(compiled.read_bytes()[:40])
    assert build("gettext", path=str(compiled)) == ([], {"file_broken": 1})
    path.write_text(PO.replace("msgid", "msgod"), encoding="utf-8")
    assert build("gettext", path=str(path))[1] == {"file_broken": 1}


def test_a_catalogue_whose_language_is_not_known(tmp_path: Path) -> None:
    pytest.importorskip("polib")
    path = tmp_path / "x.po"
    path.write_text('msgid "a"\nmsgstr "b"\n')
    assert build("gettext", path=str(path)) == ([], {"language_unknown": 1})
    assert pairs_of(build("gettext", path=str(path), lang_b="sr@latin")[0]) == [("en", "a", "sr-Latn", "b")]


def test_published_pairs(tmp_path: Path) -> None:
    lines = [
        {"source_text": "A dog.", "target_text": "Ein Hund."},
        {"source_text": "x"},
        {"source_text": "", "target_text": "y"},
    ]
    folder = tmp_path / "wikimatrix_en_de"
    folder.mkdir()
    (folder / "part-00000").write_text("\n".join(map(json.dumps, lines)) + "\n{\n", encoding="utf-8")
    (folder / "_SUCCESS").write_bytes(b"")
    made, refused = build("published_pairs", path=str(folder), lang_a="en", lang_b="de", source="wikimatrix")
    assert pairs_of(made) == [("en", "A dog.", "de", "Ein Hund.")]
    assert refused == {"line_broken": 2, "text_empty": 1}


def test_pairs_in_parquet_and_csv(tmp_path: Path) -> None:
    table = pa.table({"src": ["a", None], "tgt": ["b", "c"], "lang_b": ["de", "fr"], "score": [1.5, None]})
    pa.parquet.write_table(table, tmp_path / "p.parquet")
    options = {"text_a": "src", "text_b": "tgt", "lang_a": "en", "optional": ["lang_b", "score"]}
    made, refused = build("pair_file", path=str(tmp_path / "p.parquet"), **options)
    assert pairs_of(made) == [("en", "a", "de", "b")] and made[0][0].score == 1.5 and refused == {"line_broken": 1}
    (tmp_path / "p.csv").write_text('src,tgt,lang_b,score\n"a, b",c,de,\nx,y,de,high\n')
    made, refused = build("pair_file", path=str(tmp_path / "p.csv"), **options)
    assert pairs_of(made) == [("en", "a, b", "de", "c")] and refused == {"line_broken": 1}
    with pytest.raises(ConfigError, match="expected the columns a, tgt, got src, tgt"):
        build("pair_file", path=str(tmp_path / "p.csv"), text_a="a", text_b="tgt", lang_a="en", lang_b="de")


@pytest.mark.parametrize(
    ("name", "pair"),
    [
        ("WikiMatrix.de-en.tsv.gz", ("de", "en")),
        ("en-zh_TW.txt.zip", ("en", "zh_TW")),
        ("bible-uedin.de-en", ("de", "en")),
        ("giga-fren-en-fr", ("en", "fr")),
        ("pt-BR-en", ("pt-BR", "en")),
        ("TED.EN-DE.tsv", ("EN", "DE")),
        ("eng_Latn-deu_Latn", ("eng_Latn", "deu_Latn")),
        ("news.v18.tsv", None),
        ("bible-uedin", None),
    ],
)
def test_the_pair_in_a_file_name_is_the_last_one_of_known_languages(name: str, pair: tuple[str, str] | None) -> None:
    assert pair_in(name) == pair
