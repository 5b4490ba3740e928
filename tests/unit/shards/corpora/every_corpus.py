"""Sound files of every corpus, a few entries each: what the tests of odd inputs start from."""

from __future__ import annotations

import base64
import gzip
import io
import json
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet

from tests.unit.shards.corpora.tiny_files import picture, write_pictures

Options = dict[str, Any]
CAPTIONS = {"text": "caption", "language": "en"}


def image_folder(folder: Path) -> Options:
    write_pictures(folder, ["a.jpg", "b.jpg"])
    lines = [
        {"image": "a.jpg", "captions": {"en": ["a dog", "one dog"], "de": "ein Hund"}, "licence": "MIT", "key": "k1"},
        {
            "image": "b.jpg",
            "captions": {"pt_BR": "gato"},
            "regions": [{"box": [0, 1, 4, 4], "captions": {"en": ["x"]}}],
        },
    ]
    (folder / "captions.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return {"folder": str(folder)}


def image_folder_csv(folder: Path) -> Options:
    write_pictures(folder, ["a.jpg", "b.jpg"])
    text = 'image,language,caption,licence\na.jpg,en,"a ""big"" dog, here",MIT\nb.jpg,de,"zwei\nZeilen",MIT\n'
    (folder / "captions.csv").write_text(text)
    return {"folder": str(folder)}


def pair_rows() -> list[dict[str, Any]]:
    return [
        {"text_a": "A cat.", "lang_a": "en", "text_b": "Eine Katze.", "lang_b": "de", "score": 1.5, "source": "s"},
        {"text_a": "A dog.", "lang_a": "eng", "text_b": "犬", "lang_b": "ja", "score": None, "source": None},
    ]


def pairs_json(folder: Path) -> Options:
    (folder / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pair_rows()))
    return {"path": str(folder)}


def pairs_tsv(folder: Path) -> Options:
    (folder / "p.tsv.gz").write_bytes(gzip.compress(b"A cat.\tEine Katze.\t1.5\nA dog.\tEin Hund.\n"))
    return {"path": str(folder), "lang_a": "en", "lang_b": "de"}


def pairs_csv(folder: Path) -> Options:
    (folder / "p.csv").write_text('text_a,text_b,score\n"A cat, big",Katze,1.5\nA dog,"Ein ""Hund""",\n')
    return {"path": str(folder), "lang_a": "en", "lang_b": "de", "optional": ["score"]}


def pairs_parquet(folder: Path) -> Options:
    pa.parquet.write_table(pa.Table.from_pylist(pair_rows()), folder / "p.parquet")
    return {"path": str(folder), "optional": ["lang_a", "lang_b", "score", "source"]}


def pairs_arrow(folder: Path) -> Options:
    table = pa.Table.from_pylist(pair_rows())
    with pa.ipc.new_stream(folder / "p.arrow", table.schema) as writer:
        writer.write_table(table)
    return {"path": str(folder), "optional": ["lang_a", "lang_b", "score", "source"]}


def aligned_lines(folder: Path) -> Options:
    write_pictures(folder / "images", ["1.jpg", "2.jpg"])
    (folder / "names.txt").write_text("1.jpg\n2.jpg\n")
    (folder / "t.de").write_text("eins\nzwei\n")
    return {
        "names": str(folder / "names.txt"),
        "captions": {"de": str(folder / "t.de")},
        "images": str(folder / "images"),
    }


def coco(folder: Path) -> Options:
    write_pictures(folder / "images", ["1.jpg", "2.jpg"])
    document = {
        "licenses": [{"id": 3, "name": "CC"}],
        "images": [
            {"id": 1, "file_name": "1.jpg", "license": 3, "width": 8, "height": 6},
            {"id": "2", "file_name": "2.jpg"},
        ],
        "annotations": [{"image_id": 1, "id": 1, "caption": "a box"}, {"image_id": "2", "id": 2, "caption": "a ball"}],
    }
    objects = {
        "annotations": [{"image_id": 1, "bbox": [0, 0, 4, 4], "category_id": 7}],
        "categories": [{"id": 7, "name": "box"}],
    }
    (folder / "captions.json").write_text(json.dumps(document))
    (folder / "instances.json").write_text(json.dumps(objects))
    (folder / "cn.txt").write_text("COCO_000000000001#0\t盒子\n")
    return {
        "captions": {"en": str(folder / "captions.json"), "zh": str(folder / "cn.txt")},
        "images": str(folder / "images"),
        "instances": str(folder / "instances.json"),
    }


def flickr30k(folder: Path) -> Options:
    write_pictures(folder / "images", ["1.jpg", "2.jpg"])
    (folder / "a.token").write_text("1.jpg#0\tTwo men.\n1.jpg#1\tTwo guys.\n")
    (folder / "a.csv").write_text("image_name| comment_number| comment\n2.jpg| 0| A dog\n")
    (folder / "a.jsonl").write_text(json.dumps({"sentences": ["Der Mann."], "id": "1", "img_path": "1.jpg"}))
    (folder / "fr.tsv").write_text("1.jpg\tDeux hommes\n")
    translations = [{"path": str(folder / "fr.tsv"), "columns": ["id", "text"], "language": "fr", "join_on": "image"}]
    captions = {"en": [str(folder / "a.token"), str(folder / "a.csv")], "de": str(folder / "a.jsonl")}
    return {"captions": captions, "images": str(folder / "images"), "translations": translations}


def write_tar(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


def img2dataset(folder: Path) -> Options:
    table = {"key": ["0", "1", "2"], "status": ["success", "success", "failed"], "error_message": [None, None, "404"]}
    table |= {"url": ["http://x/0", "http://x/1", "http://x/2"], "caption": ["a dog", "a cat", "gone"]}
    pa.parquet.write_table(pa.table(table), folder / "00000.parquet")
    write_tar(folder / "00000.tar", {"0.jpg": picture(), "0.json": b"{}", "1.jpg": picture(colour=9)})
    return {"folder": str(folder), "captions": CAPTIONS, "source": "x"}


def url_list(folder: Path) -> Options:
    from shards.corpora.table import corpus_of

    (folder / "list.tsv").write_text("a dog\thttp://x/0\na cat\thttp://x/1\n")
    options = {"path": str(folder / "list.tsv"), "columns": ["caption", "url"], "captions": CAPTIONS, "source": "x"}
    options["downloads"] = str(folder / "pictures")
    (folder / "pictures").mkdir()
    stamp = corpus_of("url_list", options).list_stamp()  # type: ignore[attr-defined]
    (folder / "pictures" / "complete.json").write_text(json.dumps({"stamp": stamp}))
    texts = {"key": "0", "url": "http://x/0", "status": "success", "message": "", "captions": '{"en": ["a dog"]}'}
    texts |= {"ids": '{"row": "1"}', "licence": "", "identity": ""}
    pa.parquet.write_table(
        pa.table({name: [value] for name, value in texts.items()}), folder / "pictures" / "00000.parquet"
    )
    write_tar(folder / "pictures" / "00000.tar", {"0.jpg": picture()})
    return options


def parquet_images(folder: Path) -> Options:
    rows = [
        {"image": {"bytes": picture(), "path": "a.jpg"}, "caption": ["a dog"], "id": 7, "score": 0.5},
        {"image": {"bytes": picture(colour=9), "path": None}, "caption": ["a cat", ""], "id": None, "score": None},
    ]
    pa.parquet.write_table(pa.Table.from_pylist(rows), folder / "a.parquet", row_group_size=1)
    return {"path": str(folder), "captions": {"by_language": {"en": "caption"}}, "source": "x", "ids": ["id", "score"]}


def arrow_images(folder: Path) -> Options:
    maps = pa.array([[("en", "box"), ("de", "Kiste")], [("en", "case")]], pa.map_(pa.string(), pa.string()))
    table = pa.table({"image": [picture(), picture(colour=9)], "caption": maps})
    with pa.ipc.new_file(folder / "a.arrow", table.schema) as writer:
        writer.write_table(table)
    return {"path": str(folder), "captions": {"text": "caption"}, "source": "x"}


def published_images(folder: Path) -> Options:
    binary = base64.b64encode(picture(20, 10)).decode()
    region = {"caption": {"en": "dog"}, "bb": [1, 2, 10, 5], "attributes": {"en": "brown"}}
    lines = [
        {"binary": binary, "caption": {"en": "a dog"}, "elems": [region]},
        {"binary": binary, "caption": [{"de": "x"}]},
    ]
    (folder / "lines").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return {"path": str(folder / "lines"), "source": "x"}


def published_pairs(folder: Path) -> Options:
    (folder / "part-00000").write_text('{"source_text": "A dog.", "target_text": "Ein Hund."}\n' * 2)
    return {"path": str(folder), "lang_a": "en", "lang_b": "de", "source": "x"}


def visual_genome(folder: Path) -> Options:
    write_pictures(folder / "images", ["1.jpg"])
    region = {"region_id": 5, "image_id": 1, "phrase": "a clock", "x": 0, "y": 0, "width": 4, "height": 4}
    thing = {"object_id": 6, "names": ["clock"], "attributes": ["green"], "x": 2, "y": 2, "w": 4, "h": 4}
    (folder / "regions.json").write_text(json.dumps([{"id": 1, "regions": [region]}]))
    (folder / "attributes.json").write_text(json.dumps([{"image_id": 1, "attributes": [thing]}]))
    (folder / "data.json").write_text(json.dumps([{"image_id": 1, "width": 8, "height": 6, "coco_id": 9}]))
    (folder / "zh.tsv").write_text("5\t时钟\n")
    return {
        "images": str(folder / "images"),
        "image_data": str(folder / "data.json"),
        "regions": str(folder / "regions.json"),
        "objects": str(folder / "attributes.json"),
        "region_translations": [{"path": str(folder / "zh.tsv"), "language": "zh", "columns": ["id", "text"]}],
    }


def wit(folder: Path) -> Options:
    header = "language\tpage_url\timage_url\tcaption_reference_description\n"
    (folder / "wit.tsv").write_text(header + 'en\tp\thttp://x/0\t"a ""dog"""\nde\tp\thttp://x/0\tHund\nfr\tp\tu\tx\n')
    (folder / "pixels.csv").write_text(f"http://x/0\t{base64.b64encode(picture()).decode()}\tm\n")
    return {"path": str(folder / "wit.tsv"), "pixels": str(folder / "pixels.csv"), "languages": ["en", "de"]}


def gettext(folder: Path) -> Options:
    text = 'msgid ""\nmsgstr "Language: pt_BR\\n"\n\nmsgid "A dog"\nmsgstr "Um cão"\n\n'
    text += 'msgid "%d dog"\nmsgid_plural "%d dogs"\nmsgstr[0] "%d cão"\nmsgstr[1] "%d cães"\n'
    (folder / "a.po").write_text(text, encoding="utf-8")
    return {"path": str(folder)}


def gettext_compiled(folder: Path) -> Options:
    import polib

    gettext(folder)
    polib.pofile(str(folder / "a.po")).save_as_mofile(str(folder / "a.mo"))
    (folder / "a.po").unlink()
    return {"path": str(folder)}


def margin_file(folder: Path) -> Options:
    (folder / "WikiMatrix.de-en.tsv").write_text("1.2\tEin Hund.\tA dog.\n1.01\tx\ty\n")
    return {"path": str(folder), "anchor": "en"}


def moses(folder: Path) -> Options:
    (folder / "X.de-en.de").write_text("Ein Hund.\nEine Katze.\n")
    (folder / "X.de-en.en").write_text("A dog.\nA cat.\n")
    return {"path": str(folder)}


def moses_zip(folder: Path) -> Options:
    with zipfile.ZipFile(folder / "de-en.txt.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in (("README", "x"), ("X.de-en.de", "Ein Hund.\n" * 40), ("X.de-en.en", "A dog.\n" * 40)):
            archive.writestr(zipfile.ZipInfo(name), text, zipfile.ZIP_DEFLATED)
    return {"path": str(folder)}


def tatoeba(folder: Path) -> Options:
    (folder / "sentences.csv").write_text("1\teng\tA dog.\n2\tdeu\tEin Hund.\n3\tfra\tUn chien.\n")
    (folder / "links.csv").write_text("1\t2\n2\t1\n")
    options: Options = {name: str(folder / f"{name}.csv") for name in ("sentences", "links")}
    return options | {"languages": {"eng": "en", "deu": "de"}, "anchor": "en"}


TMX = (
    '<?xml version="1.0" encoding="utf-8"?><!DOCTYPE tmx [<!ENTITY e "x">]><tmx version="1.4"><header/><body>'
    '<tu><tuv xml:lang="en"><seg>A <ph>1</ph>dog&amp;&e;</seg></tuv><tuv xml:lang="de"><seg>Hund</seg></tuv></tu>'
    '<tu><tuv xml:lang="en-GB"><seg>A cat</seg></tuv><tuv xml:lang="de"><seg>Katze</seg></tuv></tu></body></tmx>'
)


def tmx(folder: Path) -> Options:
    (folder / "a.tmx").write_text(TMX)
    return {"path": str(folder), "lang_a": "en", "lang_b": ["de"]}


def tmx_zip(folder: Path) -> Options:
    with zipfile.ZipFile(folder / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(zipfile.ZipInfo("a.tmx"), TMX, zipfile.ZIP_DEFLATED)
    return {"path": str(folder), "lang_a": "en", "lang_b": ["de"]}


EVERY: dict[str, tuple[str, Callable[[Path], Options]]] = {
    "image_folder": ("image_folder", image_folder),
    "image_folder as CSV": ("image_folder", image_folder_csv),
    "pair_file as JSON": ("pair_file", pairs_json),
    "pair_file as TSV": ("pair_file", pairs_tsv),
    "pair_file as CSV": ("pair_file", pairs_csv),
    "pair_file as Parquet": ("pair_file", pairs_parquet),
    "pair_file as Arrow": ("pair_file", pairs_arrow),
    "parquet_images as Arrow": ("parquet_images", arrow_images),
    "gettext compiled": ("gettext", gettext_compiled),
    "moses as zip": ("moses", moses_zip),
    "tmx as zip": ("tmx", tmx_zip),
} | {
    make.__name__: (make.__name__, make)
    for make in (
        aligned_lines, coco, flickr30k, img2dataset, url_list, parquet_images, published_images, published_pairs,
        visual_genome, wit, gettext, margin_file, moses, tatoeba, tmx,
    )
}  # fmt: skip
"""What it is -> (name in a recipe, a function that writes its files into an empty folder and returns the options)."""
