"""What of a benchmark's test files stands in shard sets."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from cclm.errors import ConfigError
from cclm.types import ImageTextRecord, TextPair, View
from shards.__main__ import main
from tests.shard_writers import ImageShards, write_groups
from tests.unit.annotations.annotation_files import write_lines, write_text
from tests.unit.annotations.test_statements import NLI
from tests.unit.data.data_sets import save_manifest


def drawing(seed: int, size: int = 64, quality: int = 95) -> bytes:
    """A few grey tones; the same ones at any size, but for what a JPEG loses."""
    tones = np.random.default_rng(seed).integers(0, 256, (8, 8), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(tones).resize((size, size), Image.Resampling.BICUBIC).save(stream, "JPEG", quality=quality)
    return stream.getvalue()


def image_set(folder: Path) -> Path:
    """The first test image anew, with another caption; another image with a test sentence; and one of neither."""
    with ImageShards(folder, "images") as writer:
        for key, image, caption in (
            ("same", drawing(1, size=96, quality=60), "nothing"),
            ("said", drawing(5), "A DOG sleeps"),
            ("other", drawing(6), "a cat sleeps"),
        ):
            record = ImageTextRecord(
                key=key, image=image, image_format="jpg", captions={"en": [caption]}, source="s", licence="MIT"
            )
            writer.add(record)
        shards = writer.close()
    save_manifest(folder, View.IMAGE_TEXT, shards)
    return folder


def pair_set(folder: Path) -> Path:
    pair = TextPair(text_a="un chien", lang_a="fr", text_b="ein Hund", lang_b="de", source="s", group="g")
    save_manifest(folder, View.TEXT_PAIR, write_groups(folder, "pairs", [[pair]]))
    return folder


def data(folder: Path) -> Path:
    rows = [("1", "A dog sleeps."), ("2", "Another thing")]
    for language, split in (("en", "test"), ("en", "train")):
        write_lines(
            folder / f"XVNLI/annotations/{language}/{split}.jsonl",
            [{**NLI, "Flikr30kID": image, "sentence2": text} for image, text in rows],
        )
    write_lines(folder / "XVNLI/annotations/fr/test.jsonl", [{**NLI, "Flikr30kID": "3", "sentence2": "Un chien!"}])
    (folder / "images").mkdir()
    for number in (1, 2):
        (folder / "images" / f"{number}.jpg").write_bytes(drawing(number))
    return folder


def test_sentences_and_images_are_found(tmp_path: Path) -> None:
    folder, console = data(tmp_path / "data"), Console(file=io.StringIO(), width=200)
    sets = [str(image_set(tmp_path / "images")), str(pair_set(tmp_path / "pairs"))]
    words = ["leakage", "xvnli", str(folder), "--images", str(folder / "images"), "--sets", *sets]
    assert main([*words, "--json", str(tmp_path / "leakage.json")], console) == 0
    found = json.loads((tmp_path / "leakage.json").read_text())
    assert list(found["sets"]) == sorted(sets) and found["distance"] == 4
    english, french = sorted(found["files"], key=lambda one: str(one["language"]))
    assert (english["language"], english["split"]) == ("en", "test"), "nothing is measured on train"
    assert (english["texts"], english["found_texts"], english["images"], english["found_images"]) == (2, 1, 2, 1)
    assert {one["in"].rpartition(": ")[2] for one in english["examples"]} == {"said", "same"}
    assert (french["found_texts"], french["images"], french["missing_images"]) == (1, 0, 1)
    assert "1 of 2 sentences, 1 of 2 images" in console.file.getvalue()  # type: ignore[attr-defined]


def test_without_images_only_sentences_are_compared(tmp_path: Path) -> None:
    from shards.leakage import in_words, leakage

    found = leakage("xvnli", data(tmp_path / "data"), [], [str(pair_set(tmp_path / "pairs"))], 4)
    assert [one["found_texts"] for one in found["files"]] == [0, 1] and not any(one["images"] for one in found["files"])
    assert list(in_words(found))[-1].startswith("images were not compared")
    with pytest.raises(ConfigError):
        leakage("marvl", tmp_path / "data", [], [], 4)


def test_of_a_file_of_all_splits_the_test_is_looked_for(tmp_path: Path) -> None:
    """COCO-CN's captions, of which a list beside them says which are tested on."""
    folder, names = tmp_path / "coco-cn", [f"COCO_val2014_{number:012d}" for number in (1, 2)]
    texts = "".join(f"{name}#0\t{text}\n" for name, text in zip(names, ("a cat sleeps", "a dog sleeps"), strict=True))
    write_text(folder / "imageid.human-written-caption.txt", texts)
    words = ["leakage", "mscoco", str(tmp_path), "--sets", str(image_set(tmp_path / "images"))]
    assert main([*words, "--json", str(tmp_path / "none.json")], Console(file=io.StringIO())) != 0
    write_text(folder / "coco-cn_test.txt", f"{names[1]}\n")
    assert main([*words, "--json", str(tmp_path / "leakage.json")], Console(file=io.StringIO())) == 0
    (found,) = json.loads((tmp_path / "leakage.json").read_text())["files"]
    assert (found["language"], found["split"], found["texts"], found["found_texts"]) == ("zh", "test", 1, 1)
    assert found["examples"][0]["text"] == "adogsleeps"
