"""Pictures inside Parquet, Arrow and tars."""

from __future__ import annotations

import io
import json
import tarfile

import pyarrow as pa
import pyarrow.parquet
import pytest

from cclm.errors import ConfigError
from shards.corpora.table import corpus_of
from tests.unit.shards.corpora.tiny_files import build, picture, write_pictures


def hf_table():
    rows = [
        {"image": {"bytes": picture(colour=1), "path": "1.jpg"}, "caption": ["a dog", ""], "de": "ein Hund", "id": 7},
        {"image": {"bytes": None, "path": "2.jpg"}, "caption": ["a cat"], "de": None, "id": 8},
        {"image": {"bytes": b"GIF89a...", "path": None}, "caption": ["moving"], "de": None, "id": None},
        {"image": None, "caption": ["none"], "de": None, "id": 10},
        {"image": {"bytes": picture(), "path": None}, "caption": [], "de": " ", "id": 11},
    ]
    return pa.Table.from_pylist(rows)


OPTIONS = {"captions": {"by_language": {"en": "caption", "de": "de"}}, "source": "hf", "ids": ["id"]}


def write_parquet(folder):
    pa.parquet.write_table(hf_table(), folder / "train-00000-of-00001.parquet", row_group_size=2)


def write_saved(folder):
    """What `Dataset.save_to_disk` leaves: an Arrow stream, and results of map() beside it."""
    for name in ("data-00000-of-00001.arrow", "cache-0123.arrow"):
        with pa.ipc.new_stream(folder / name, hf_table().schema) as writer:
            writer.write_table(hf_table(), max_chunksize=2)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}))


def write_arrow_file(folder):
    with pa.ipc.new_file(folder / "x.arrow", hf_table().schema) as writer:
        writer.write_table(hf_table())


@pytest.mark.parametrize("write", [write_parquet, write_saved, write_arrow_file])
def test_tables_with_pictures_inside(tmp_path, write):
    (tmp_path / "data").mkdir()
    write(tmp_path / "data")
    write_pictures(tmp_path, ["2.jpg"])
    made, refused = build("parquet_images", path=str(tmp_path / "data"), **OPTIONS)
    assert [(record.captions, record.ids["id"]) for record in made] == [({"en": ["a dog"], "de": ["ein Hund"]}, "7")]
    assert made[0].image == picture(colour=1)
    assert refused == {"image_missing": 2, "image_format": 1, "captions_empty": 1}
    made, refused = build("parquet_images", path=str(tmp_path / "data"), image_folder=str(tmp_path), **OPTIONS)
    assert len(made) == 2 and refused == {"image_missing": 1, "image_format": 1, "captions_empty": 1}


def test_splits_columns_and_translations_of_a_data_set(tmp_path):
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


def test_a_map_of_captions_by_language_in_parquet(tmp_path):
    rows = [{"image": picture(), "t": {"en": "x", "ja": "犬"}}, {"image": picture(), "t": {"en": "y", "ja": None}}]
    pa.parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    made, refused = build("parquet_images", path=str(tmp_path), captions={"text": "t"}, source="x")
    assert [record.captions for record in made] == [{"en": ["x"], "ja": ["犬"]}, {"en": ["y"]}] and not refused


def write_img2dataset(folder):
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


def test_img2dataset_counts_its_failures(tmp_path):
    write_img2dataset(tmp_path / "cc3m")
    made, refused = build("img2dataset", folder=str(tmp_path / "cc3m"), **IMG2DATASET)
    assert [(record.captions, record.licence) for record in made] == [
        ({"en": ["a dog"]}, "CC0-1.0"),
        ({"en": ["a cat"]}, "unknown"),
    ]
    assert made[1].image == picture(colour=2) and made[1].ids == {"key": "000000002", "url": "http://x/000000002.jpg"}
    assert refused == {"failed_to_download": 1, "image_missing": 1}


def test_img2dataset_with_a_tar_that_breaks_off_and_translations(tmp_path):
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
