"""Pictures inside Parquet, Arrow and tars."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest
import webdataset

from cclm.errors import ConfigError
from shards.corpora.files import accounting
from shards.corpora.table import corpus_of
from tests.unit.shards.corpora.tiny_files import build, made_and_refused, picture, write_pictures


def hf_table() -> Any:
    rows = [
        {"image": {"bytes": picture(colour=1), "path": "1.jpg"}, "caption": ["a dog", ""], "de": "ein Hund", "id": 7},
        {"image": {"bytes": None, "path": "2.jpg"}, "caption": ["a cat"], "de": None, "id": 8},
        {"image": {"bytes": b"GIF89a...", "path": None}, "caption": ["moving"], "de": None, "id": None},
        {"image": None, "caption": ["none"], "de": None, "id": 10},
        {"image": {"bytes": picture(), "path": None}, "caption": [], "de": " ", "id": 11},
    ]
    return pa.Table.from_pylist(rows)


OPTIONS = {"captions": {"by_language": {"en": "caption", "de": "de"}}, "source": "hf", "ids": ["id"]}


def write_parquet(folder: Path) -> None:
    pa.parquet.write_table(hf_table(), folder / "train-00000-of-00001.parquet", row_group_size=2)


def write_saved(folder: Path) -> None:
    """What `Dataset.save_to_disk` leaves: an Arrow stream, and results of map() beside it."""
    for name in ("data-00000-of-00001.arrow", "cache-0123.arrow"):
        with pa.ipc.new_stream(folder / name, hf_table().schema) as writer:
            writer.write_table(hf_table(), max_chunksize=2)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}))


def write_arrow_file(folder: Path) -> None:
    with pa.ipc.new_file(folder / "x.arrow", hf_table().schema) as writer:
        writer.write_table(hf_table())


@pytest.mark.parametrize("write", [write_parquet, write_saved, write_arrow_file])
def test_tables_with_pictures_inside(tmp_path: Path, write: Any) -> None:
    (tmp_path / "data").mkdir()
    write(tmp_path / "data")
    write_pictures(tmp_path, ["2.jpg"])
    made, refused = build("parquet_images", path=str(tmp_path / "data"), **OPTIONS)
    assert [(record.captions, record.ids["id"]) for record in made] == [({"en": ["a dog"], "de": ["ein Hund"]}, "7")]
    assert made[0].image == picture(colour=1)
    assert refused == {"image_missing": 2, "image_format": 1, "captions_empty": 1}
    made, refused = build("parquet_images", path=str(tmp_path / "data"), image_folder=str(tmp_path), **OPTIONS)
    assert len(made) == 2 and refused == {"image_missing": 1, "image_format": 1, "captions_empty": 1}


def test_splits_columns_and_translations_of_a_data_set(tmp_path: Path) -> None:
    for split in ("train", "test"):
        (tmp_path / split).mkdir()
        write_saved(tmp_path / split)
    (tmp_path / "dataset_dict.json").write_text(json.dumps({"splits": ["train", "test"]}))
    with pytest.raises(
        ConfigError, match=r"expected one split of a saved DatasetDict, got all of them \(test, train\)"
    ):
        corpus_of("parquet_images", OPTIONS | {"path": str(tmp_path)}).parts()
    with pytest.raises(ConfigError, match=r"expected the columns picture, caption, de, id, got image"):
        corpus_of("parquet_images", OPTIONS | {"path": str(tmp_path / "train"), "image": "picture"}).parts()
    with pytest.raises(ConfigError, match="expected columns of captions, got none"):
        corpus_of("parquet_images", {"path": str(tmp_path / "train"), "source": "x", "captions": {}}).parts()
    pa.parquet.write_table(pa.table({"id": [7, 99], "text": ["un chien", "x"]}), tmp_path / "fr.parquet")
    translations = [{"path": str(tmp_path / "fr.parquet"), "join_on": "id", "language": "fr"}]
    made, refused = build("parquet_images", path=str(tmp_path / "train"), translations=translations, **OPTIONS)
    assert made[0].captions["fr"] == ["un chien"] and refused["translation_unmatched"] == 1


def test_a_map_of_captions_by_language_in_parquet(tmp_path: Path) -> None:
    rows = [{"image": picture(), "t": {"en": "x", "ja": "犬"}}, {"image": picture(), "t": {"en": "y", "ja": None}}]
    pa.parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    made, refused = build("parquet_images", path=str(tmp_path), captions={"text": "t"}, source="x")
    assert [record.captions for record in made] == [{"en": ["x"], "ja": ["犬"]}, {"en": ["y"]}] and not refused


def write_img2dataset(folder: Path) -> None:
    """Two tars as img2dataset writes them."""
    rows = [
        ("000000000", "success", None, "a dog"),
        ("000000001", "failed_to_download", "HTTP Error 404: Not Found", "gone"),
        ("000000002", "success", None, "a cat"),
        ("000000003", "success", None, "not in the tar"),
    ]
    table = {name: [row[at] for row in rows] for at, name in enumerate(("key", "status", "error_message", "caption"))}
    table |= {"url": [f"http://x/{row[0]}.jpg" for row in rows], "LICENSE": ["CC0-1.0", None, None, None]}
    folder.mkdir(parents=True)
    pa.parquet.write_table(pa.table(table), folder / "00000.parquet")
    with tarfile.open(folder / "00000.tar", "w") as archive:
        for number in (0, 2):
            for extension, data in (("jpg", picture(colour=number)), ("txt", b"x"), ("json", b"{}")):
                member = tarfile.TarInfo(f"{number:09d}.{extension}")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))


IMG2DATASET = {"captions": {"text": "caption", "language": "en"}, "source": "cc3m", "licence_column": "LICENSE"}


def test_img2dataset_counts_its_failures(tmp_path: Path) -> None:
    write_img2dataset(tmp_path / "cc3m")
    made, refused = build("img2dataset", folder=str(tmp_path / "cc3m"), **IMG2DATASET)
    assert [(record.captions, record.licence) for record in made] == [
        ({"en": ["a dog"]}, "CC0-1.0"),
        ({"en": ["a cat"]}, "unknown"),
    ]
    assert made[1].image == picture(colour=2) and made[1].ids == {"key": "000000002", "url": "http://x/000000002.jpg"}
    assert refused == {"failed_to_download": 1, "image_missing": 1}


def test_img2dataset_with_a_tar_that_breaks_off_and_translations(tmp_path: Path) -> None:
    write_img2dataset(tmp_path / "cc3m")
    tar = tmp_path / "cc3m" / "00000.tar"
    tar.write_bytes(tar.read_bytes()[:1_000])
    made, refused = build("img2dataset", folder=str(tmp_path / "cc3m"), **IMG2DATASET)
    assert made == [] and sum(refused.values()) == 4 and refused["failed_to_download"] == 1
    tar.unlink()
    assert build("img2dataset", folder=str(tmp_path / "cc3m"), **IMG2DATASET)[1] == {
        "failed_to_download": 1,
        "image_missing": 3,
    }
    write_img2dataset(tmp_path / "again")
    (tmp_path / "de.tsv").write_text("000000000\tein Hund\n")
    translations = [{"path": str(tmp_path / "de.tsv"), "join_on": "key", "language": "de", "columns": ["id", "text"]}]
    made, _ = build("img2dataset", folder=str(tmp_path / "again"), translations=translations, **IMG2DATASET)
    assert {"en": ["a dog"], "de": ["ein Hund"]} in [record.captions for record in made]


def write_tar(path: Path, members: list[tuple[str, bytes]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def plain_members(numbers: range, folder: str = "") -> list[tuple[str, bytes]]:
    """What `webdataset.TarWriter` would write of some samples."""
    members: list[tuple[str, bytes]] = []
    for number in numbers:
        document = {"lang": "pt_BR", "texts": {"fr": f"chien {number}"}, "title": ["one", "two"], "id": number}
        members += [
            (f"{folder}{number:06d}.jpg", picture(colour=number)),
            (f"{folder}{number:06d}.TXT", f" dog {number}\n".encode()),
            (f"{folder}{number:06d}.json", json.dumps(document).encode()),
            (f"{folder}{number:06d}.cls", str(number % 10).encode()),
        ]
    return members


ENGLISH = {"captions": {"text": "txt", "language": "en"}}


def test_plain_webdataset_tars_need_nothing_else(tmp_path: Path) -> None:
    for number in range(3):
        write_tar(tmp_path / f"shard-{number:06d}.tar", plain_members(range(2 * number, 2 * number + 2)))
    made, refused = build("webdataset", path=str(tmp_path), **ENGLISH)
    assert [record.captions for record in made] == [{"en": [f"dog {number}"]} for number in range(6)] and not refused
    assert [record.image for record in made] == [picture(colour=number) for number in range(6)]
    assert made[0].ids == {"key": "000000"} and made[0].source == "webdataset"
    # As `webdataset` itself reads them.
    theirs = webdataset.DataPipeline(
        webdataset.SimpleShardList(sorted(map(str, tmp_path.glob("*.tar")))), webdataset.tarfile_to_samples()
    )
    assert [(sample["__key__"], sample["jpg"]) for sample in theirs] == [(one.ids["key"], one.image) for one in made]
    for path in (f"{tmp_path}/shard-{{000000..000001}}.tar", [f"{tmp_path}/*0.tar", f"{tmp_path}/shard-00000[1].tar"]):
        assert len(build("webdataset", path=path, **ENGLISH)[0]) == 4
    with pytest.raises(ConfigError, match=r"shard-000003.tar: expected a file .*, got no such file"):
        corpus_of("webdataset", {"path": f"{tmp_path}/shard-{{000000..000003}}.tar", **ENGLISH}).parts()


@pytest.mark.parametrize(
    ("captions", "expected"),
    [
        ({"text": "json.texts"}, {"fr": ["chien 0"]}),
        ({"text": "json.title", "language_column": "json.lang"}, {"pt-BR": ["one", "two"]}),
        ({"by_language": {"en": "txt", "fr": "json.texts.fr"}}, {"en": ["dog 0"], "fr": ["chien 0"]}),
        ({"by_language": {"en": "txt", "de": "json.texts.de", "it": "it.txt"}}, {"en": ["dog 0"]}),
        ({"text": "list.json", "language": "en"}, {"en": ["a", "b"]}),
        ({"text": "seg.txt", "language": "en"}, {"en": ["a mask"]}),
    ],
)
def test_captions_are_members_or_fields_of_them(
    tmp_path: Path, captions: dict[str, Any], expected: dict[str, list[str]]
) -> None:
    more = [("a/000000.list.json", b'["a", "b"]'), ("a/000000.seg.txt", b"a mask"), ("a/000000.seg.png", b"no photo")]
    write_tar(tmp_path / "x.tar", [*plain_members(range(1), "a/"), *more])
    options = {"path": str(tmp_path / "x.tar"), "captions": captions, "ids": ["cls", "json.id"]}
    (record,), refused = build("webdataset", **options, licence_column="json.lang")
    assert record.captions == expected and not refused
    assert record.ids == {"key": "a/000000", "cls": "0", "json.id": "0"} and record.licence == "pt_BR"


def test_the_image_member_may_have_any_name(tmp_path: Path) -> None:
    write_tar(tmp_path / "x.tar", [("1.photo.jpg", picture()), ("1.thumb.jpg", picture(2, 2)), ("1.txt", b"x")])
    assert build("webdataset", path=str(tmp_path), image=["photo.jpg"], **ENGLISH)[0][0].image == picture()
    assert build("webdataset", path=str(tmp_path), image=["none", "thumb.jpg"], **ENGLISH)[0][0].image == picture(2, 2)


def test_broken_members_cost_their_sample(tmp_path: Path) -> None:
    broken = [
        ("ok.jpg", picture()),
        ("ok.txt", b"fine"),
        ("alone.txt", b"no image"),
        ("silent.jpg", picture()),
        ("blank.jpg", picture()),
        ("blank.txt", b" \n"),
        ("text.jpg", b"not an image"),
        ("text.txt", b"x"),
        ("latin.jpg", picture()),
        ("latin.txt", "é".encode("latin-1")),
        ("twice.jpg", picture()),
        ("twice.txt", b"x"),
        ("twice.txt", b"y"),
        ("._ok.jpg", b"of a Mac"),
        ("README", b"no suffix"),
        ("__header__.json", b"{}"),
        ("again.jpg", picture()),
        ("again.txt", b"fine"),
    ]
    write_tar(tmp_path / "a.tar", broken)
    made, refused = made_and_refused(corpus_of("webdataset", {"path": str(tmp_path), **ENGLISH}))
    assert [record.ids["key"] for record in made] == ["ok", "again"]
    assert {error.where: error.reason for error in refused} == {
        "a.tar:alone": "image_missing",
        "a.tar:silent": "captions_empty",
        "a.tar:blank": "captions_empty",
        "a.tar:text": "image_format",
        "a.tar:latin": "text_encoding",
        "a.tar:twice": "member_twice",
    }
    write_tar(tmp_path / "a.tar", [("1.jpg", picture()), ("1.json", b'{"caption": '), *plain_members(range(2, 3))])
    captions = {"captions": {"text": "json.texts"}}
    assert build("webdataset", path=str(tmp_path), **captions)[1] == {"json_broken": 1}
    write_tar(tmp_path / "a.tar", [("1.jpg", picture()), ("1.json", b'{"texts": {"en": "x"}, "texts": {"en": "y"}}')])
    assert build("webdataset", path=str(tmp_path), **captions)[1] == {"json_broken": 1}


@pytest.mark.parametrize("size", [100, 512, 600, 1200, 2048, 5000, 8191, 8192, 8704, 10000])
def test_of_a_truncated_tar_what_was_read_stands(tmp_path: Path, size: int) -> None:
    tar = write_tar(tmp_path / "a.tar", plain_members(range(4)))
    whole = tar.read_bytes()
    tar.write_bytes(whole[:size])
    made, refused = made_and_refused(corpus_of("webdataset", {"path": str(tmp_path), **ENGLISH}))
    num_whole = len({name for name, end in member_ends(whole) if name.endswith(".TXT") and end <= size})
    assert len(made) == num_whole and [record.captions["en"] for record in made] == [
        [f"dog {number}"] for number in range(num_whole)
    ]
    (tail,) = [error for error in refused if error.reason == "file_broken"]
    assert "a.tar" in tail.where and len(refused) <= 2


def member_ends(whole: bytes) -> list[tuple[str, int]]:
    with tarfile.open(fileobj=io.BytesIO(whole)) as archive:
        return [(member.name, member.offset_data + member.size) for member in archive]


def test_damage_inside_a_tar_and_tars_behind_each_other_are_noticed(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "a.tar", plain_members(range(3)))
    whole = bytearray(tar.read_bytes())
    at = member_ends(bytes(whole))[4][1] // 512 * 512 + 512  # the header behind the second image
    tar.write_bytes(whole[:at] + b"\xff" * 512 + whole[at + 512 :])
    made, refused = build("webdataset", path=str(tmp_path), **ENGLISH)
    assert len(made) == 1 and refused == {"captions_empty": 1, "file_broken": 1}
    tar.write_bytes(bytes(whole) * 2)  # `cat a.tar a.tar`
    made, refused = build("webdataset", path=str(tmp_path), **ENGLISH)
    assert len(made) == 3 and refused == {"file_broken": 1}


def test_compressed_tars_are_left_out_aloud(tmp_path: Path) -> None:
    plain = write_tar(tmp_path / "a.tar", plain_members(range(2)))
    (tmp_path / "b.tar.gz").write_bytes(gzip.compress(plain.read_bytes()))
    with accounting() as account:
        assert len(corpus_of("webdataset", {"path": str(tmp_path), **ENGLISH}).parts()) == 1
    assert account.kinds() == {"a compressed tar": {"files": 1, "first": "b.tar.gz"}}
    with pytest.raises(ConfigError, match=r"only compressed ones\. Unpack them"):
        corpus_of("webdataset", {"path": str(tmp_path / "b.tar.gz"), **ENGLISH}).parts()
    with pytest.raises(ConfigError, match="expected a path with as many"):
        corpus_of("webdataset", {"path": str(tmp_path / "{0..2.tar"), **ENGLISH}).parts()


def test_translations_of_webdataset_samples(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", plain_members(range(2)))
    (tmp_path / "de.tsv").write_text("000001\tein Hund\n", encoding="utf-8")
    translations = [{"path": str(tmp_path / "de.tsv"), "join_on": "key", "language": "de", "columns": ["id", "text"]}]
    made, _ = build("webdataset", path=str(tmp_path / "a.tar"), translations=translations, **ENGLISH)
    assert {"en": ["dog 1"], "de": ["ein Hund"]} in [record.captions for record in made] and len(made) == 2
