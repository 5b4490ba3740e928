from __future__ import annotations

import copy
import errno
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from pyarrow import parquet

from cclm.cli.__main__ import main
from cclm.errors import ConfigError, DataError
from cclm.hub.open import OpenedModel, place
from cclm.retrieve.embed import (
    Embedder,
    EmbeddingFacts,
    embed,
    embed_units,
    part_path,
    prepare_folder,
    written_by_one,
)
from cclm.retrieve.embed_source import Files, Shards, find_source
from cclm.retrieve.search import Hit, load_embedded, page, search, text_table
from tests.image_files import turned_file
from tests.unit.data.data_sets import write_images, write_pairs
from tests.unit.hub.test_hub_folder import write

COLOURS = ("red", "blue", "green", "black", "white", "orange", "yellow")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Seven pictures, one broken; two files of texts."""
    root = tmp_path / "things"
    (root / "below").mkdir(parents=True)
    for number, colour in enumerate(COLOURS):
        place = root / ("below" if number % 2 else ".") / f"{colour}.png"
        Image.effect_mandelbrot((20 + number, 30), (-2, -1.5, 1, 1.5), 5 + number).convert("RGB").save(place)
    (root / "broken.png").write_bytes((root / "red.png").read_bytes()[:60])
    (root / "a.txt").write_text("a red car\n\nein rotes Auto\n", encoding="utf-8")
    (root / "b.TXT").write_text("赤い車\n", encoding="utf-8")
    return root


def facts_of(opened: OpenedModel, source: Files | Shards, units_per_part: int = 3) -> EmbeddingFacts:
    return EmbeddingFacts(
        model=opened.fingerprint,
        source=source.fingerprint,
        root=str(source.root),
        with_captions=getattr(source, "with_captions", False),
        languages=tuple(getattr(source, "languages", ())),
        num_units=len(source),
        units_per_part=units_per_part,
        width=8,
    )


def columns(folder: Path) -> dict[str, list[object]]:
    return dict(parquet.read_table(folder).to_pydict())


def test_a_folder_becomes_rows_in_the_order_of_its_names(opened: OpenedModel, folder: Path, tmp_path: Path) -> None:
    source = Files(folder)
    assert embed(Embedder(opened=opened, batch_size=4), source, tmp_path / "out", facts_of(opened, source)) == 11
    found = columns(tmp_path / "out")
    assert found["key"][:3] == ["a.txt:1", "a.txt:3", "b.TXT:1"] and found["unit"] == list(range(11))
    assert found["text"][1] == "ein rotes Auto" and found["kind"].count("image") == 8
    broken = found["key"].index("broken.png")
    assert found["feature"][broken] is None and str(found["error"][broken]).startswith("image_")
    assert sum(error is not None for error in found["error"]) == 1
    direct = Embedder(opened=opened).images([(folder / "red.png").read_bytes])[0][0]
    torch.testing.assert_close(torch.tensor(found["feature"][found["key"].index("red.png")]), direct)
    text = opened.tokenizer.encode(["a red car"], opened.max_tokens)
    with torch.inference_mode():
        expected = opened.model.get_text_features(torch.tensor(text))[0]
    torch.testing.assert_close(torch.tensor(found["feature"][0]), expected, atol=1e-6, rtol=1e-5)


def test_lines_are_counted_as_editors_count_them(tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_bytes("\ufeffa\u2028b\r\n\n c \n".encode())
    rows = [row for unit in range(2) for row in Files(tmp_path).rows(unit)]
    assert [(row.key, row.text) for row in rows] == [("texts.txt:1", "a\u2028b"), ("texts.txt:3", "c")]
    (tmp_path / "latin.txt").write_bytes("Übung".encode("latin-1"))
    with pytest.raises(ConfigError) as caught:
        Files(tmp_path)
    assert caught.value.where == f"{tmp_path}/latin.txt:1"


def test_turned_gone_and_foreign_files_are_accounted_for(opened: OpenedModel, tmp_path: Path) -> None:
    upright = Image.effect_mandelbrot((48, 32), (-2, -1.5, 1, 1.5), 9).convert("RGB")
    for orientation in (1, 6, 3):
        (tmp_path / f"{orientation}.png").write_bytes(turned_file(orientation, "PNG", upright))
    (tmp_path / "gone.png").write_bytes(b"soon")
    (tmp_path / "notes.pdf").write_bytes(b"")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "loop").symlink_to(tmp_path)
    (tmp_path / "broken.png").symlink_to(tmp_path / "nowhere")
    Path(os.fsdecode(bytes(tmp_path / "sub") + b"/\xff.png")).write_bytes(b"of an old disk")
    source = Files(tmp_path)
    (tmp_path / "gone.png").unlink()
    found = embed_units(Embedder(opened=opened), source, range(len(source)))
    assert [str(row["error"]).split(":")[0] for row in found] == ["None", "None", "None", "image_missing"]
    assert all((row["feature"] == found[0]["feature"]).all() for row in found[:3])
    assert source.left_out == {".pdf": 1, "link to a folder": 1, "no regular file": 1, "name that is not UTF-8": 1}


def test_a_fault_of_the_disk_is_no_missing_image(opened: OpenedModel, tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "there.png").write_bytes(b"an image")
    source = Files(tmp_path)

    def read_bytes(path: Path) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))

    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    with pytest.raises(OSError, match="Input/output error"):
        embed_units(Embedder(opened=opened), source, range(1))


def test_shards_give_pictures_captions_and_sentences(opened: OpenedModel, tmp_path: Path) -> None:
    write_images(tmp_path / "images", 5, per_shard=2)
    pictures, captions = find_source(tmp_path / "images"), Shards(tmp_path / "images", True)
    assert [row.text for row in pictures.rows(0)] == [None] and len(pictures) == 5
    rows = captions.rows(1)
    assert rows[0].text is None and all(row.text and row.language for row in rows[1:]) and len(rows) > 1
    assert pictures.fingerprint != captions.fingerprint
    only = Shards(tmp_path / "images", True, (str(rows[1].language),))
    assert {row.language for unit in range(5) for row in only.rows(unit)} == {None, rows[1].language}
    write_pairs(tmp_path / "pairs", 4)
    sentences = find_source(tmp_path / "pairs")
    keys = [row.key for unit in range(len(sentences)) for row in sentences.rows(unit)]
    assert len(set(keys)) == len(keys) and all(row.text for row in sentences.rows(0))
    facts = facts_of(opened, captions, units_per_part=2)
    embed(Embedder(opened=opened), captions, tmp_path / "out", facts)
    found = columns(tmp_path / "out")
    assert found["key"] == [row.key for unit in range(5) for row in captions.rows(unit)]


@pytest.mark.parametrize("view", ["image", "text"])
def test_a_damaged_record_ends_nothing_and_is_counted(
    opened: OpenedModel, tmp_path: Path, capsys: pytest.CaptureFixture[str], view: str
) -> None:
    write(opened, tmp_path / "model")
    whole = write_images(tmp_path / "set", 6, per_shard=2) if view == "image" else write_pairs(tmp_path / "set", 6)
    last = sorted(whole.glob("*.tar"))[-1]
    last.write_bytes(last.read_bytes()[:1500])
    arguments = ["embed", str(tmp_path / "model"), str(whole), "--to", str(tmp_path / "out"), "--captions"]
    assert main(arguments) == 0 and main(arguments) == 0
    found = columns(tmp_path / "out")
    broken = [number for number, error in enumerate(found["error"]) if error is not None]
    assert len(broken) > 0 and all(found["feature"][number] is None for number in broken)
    assert {str(found["error"][number]).partition(":")[0] for number in broken} == {"tar_truncated"}
    assert {found["kind"][number] for number in broken} == {view}
    assert capsys.readouterr().out.count(f"{view} tar_truncated {len(broken)}\n") == 2
    last.unlink()
    with pytest.raises(DataError) as caught:
        list(map(Shards(whole).rows, range(6)))
    assert caught.value.reason == "tar_missing"
    arguments[-2] = str(tmp_path / "again")
    assert main(arguments) != 0
    assert not list((tmp_path / "again").glob("*.parquet"))


def test_what_a_missing_shard_ends_goes_on_when_it_is_back(opened: OpenedModel, tmp_path: Path) -> None:
    write(opened, tmp_path / "model")
    whole = write_images(tmp_path / "set", 6, per_shard=2)
    last = sorted(whole.glob("*.tar"))[-1]
    given = [str(whole), "--to", str(tmp_path / "out"), "--units-per-file", "2"]
    last.rename(tmp_path / "elsewhere")
    for command in (["embed", str(tmp_path / "model"), *given], ["score", *given, "--model", str(tmp_path / "model")]):
        command[command.index("--to") + 1] = str(tmp_path / command[0])
        assert main(command) != 0
    (tmp_path / "elsewhere").rename(last)
    for command in (["embed", str(tmp_path / "model"), *given], ["score", *given, "--model", str(tmp_path / "model")]):
        command[command.index("--to") + 1] = str(tmp_path / command[0])
        assert main(command) == 0
    assert columns(tmp_path / "embed")["error"] == [None] * 6
    parts = [parquet.read_table(path) for path in sorted((tmp_path / "score").glob("*.parquet"))]
    assert sum(len(part) for part in parts) == 18 and not any(any(part["error"].to_pylist()) for part in parts)


def test_only_missing_parts_are_made_and_nothing_twice(opened: OpenedModel, folder: Path, tmp_path: Path) -> None:
    source, embedder = Files(folder), Embedder(opened=opened)
    facts, out = facts_of(opened, source), tmp_path / "out"
    embed(embedder, source, out, facts)
    whole = columns(out)
    part_path(out, 1).unlink()
    (out / ".part-00000001.parquet.partial").write_bytes(b"half")
    assert prepare_folder(out, facts) == [1] and not list(out.glob(".*"))
    seen: list[int] = []
    assert embed(embedder, source, out, facts, on_unit=seen.append) == 3 and seen == [5]
    assert columns(out) == whole
    assert embed(embedder, source, out, facts) == 0


def test_another_model_or_source_is_refused(opened: OpenedModel, folder: Path, tmp_path: Path) -> None:
    source, out = Files(folder), tmp_path / "out"
    facts = facts_of(opened, source)
    prepare_folder(out, facts)
    for change, words in (({"model": "x"}, "another model"), ({"num_units": 3, "source": "y"}, "another source")):
        with pytest.raises(ConfigError, match=words):
            prepare_folder(out, replace(facts, **change))
    with pytest.raises(ConfigError, match="a folder with other contents"):
        prepare_folder(folder, facts)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="no such file in it"):
        Files(tmp_path / "empty")
    with pytest.raises(ConfigError, match="nothing at this path"):
        Files(tmp_path / "nowhere")


def test_a_fingerprint_tells_models_apart_and_not_their_dtype(opened: OpenedModel) -> None:
    half = copy.deepcopy(opened.model).bfloat16()
    assert replace(opened, model=half).fingerprint == opened.fingerprint
    again = replace(opened, model=copy.deepcopy(opened.model))
    assert place(again, "cpu", "fp16").fingerprint == opened.fingerprint, "of the weights as they were opened"
    other = copy.deepcopy(opened.model)
    with torch.no_grad():
        other.text_projection.linear.weight[0, 0] += 0.1
    assert replace(opened, model=other).fingerprint != opened.fingerprint


def test_search_finds_by_cosine_and_looks_again(opened: OpenedModel, folder: Path, tmp_path: Path) -> None:
    source, out = Files(folder), tmp_path / "out"
    embed(Embedder(opened=opened), source, out, facts_of(opened, source))
    embedded = load_embedded(out)
    assert len(embedded.key) == 7, "the broken one is no answer"
    queries = ["a red car", "赤い車"]
    found = search(opened, embedded, queries, top_k=3)
    cosine_QN = Embedder(opened=opened).texts(queries)[0] @ embedded.feature_NE.T
    for hits, cosine_N in zip(found, cosine_QN, strict=True):
        assert [hit.key for hit in hits] == [embedded.key[row] for row in cosine_N.topk(3).indices.tolist()]
        assert hits[0].cosine == pytest.approx(float(cosine_N.max()), abs=1e-6)
    again = search(opened, embedded, queries[:1], top_k=2, rerank_top=5)[0]
    assert len(again) == 2 and all(hit.match is not None and 0 < hit.match < 1 for hit in again)
    pixels = torch.stack([torch.from_numpy(_pixels(opened, source, embedded.unit[row])) for row in range(7)])
    ids = torch.tensor(opened.tokenizer.encode(queries[:1], opened.max_tokens))
    with torch.inference_mode():
        expected = opened.model.rerank(pixels, ids, top_k=5)
    assert [hit.key for hit in again] == [embedded.key[row] for row in expected.image[0, :2].tolist()]
    texts = search(opened, load_embedded(out, "text"), ["赤い車"], top_k=1)[0]
    assert texts[0].key == "b.TXT:1" and texts[0].cosine == pytest.approx(1.0, abs=1e-5)


def _pixels(opened: OpenedModel, source: Files, unit: int) -> Any:  # type: ignore[no-untyped-def]
    from cclm.data.decoding import decode_image
    from cclm.data.image import eval_image

    return eval_image(decode_image(source.image(unit)), opened.transform)


def test_search_says_what_does_not_fit(opened: OpenedModel, folder: Path, tmp_path: Path) -> None:
    source, out = Files(folder), tmp_path / "out"
    facts = facts_of(opened, source)
    embed(Embedder(opened=opened), source, out, facts)
    embedded = load_embedded(out)
    stranger = replace(embedded, facts=replace(facts, model="x"))
    with pytest.raises(ConfigError, match="the model that embedded the set"):
        search(opened, stranger, ["a"], top_k=1)
    with pytest.raises(ConfigError, match="a text with at least one token, got '  '"):
        search(opened, embedded, ["  "], top_k=1)
    with pytest.raises(ConfigError, match=r"a text in UTF-8, got '\\udcfc'"):
        search(opened, embedded, ["\udcfc"], top_k=1)
    (folder / "red.png").write_bytes(b"gone")
    with pytest.raises(ConfigError, match="expected the files that were embedded, got others"):
        search(opened, embedded, ["a"], top_k=1, rerank_top=2)
    part_path(out, 2).unlink()
    with pytest.raises(ConfigError, match="expected 4 parts, got 3"):
        load_embedded(out)
    with pytest.raises(ConfigError, match="a folder that `cclm embed` wrote"):
        load_embedded(tmp_path)


def test_another_dtype_gives_nearly_the_same_and_a_device_that_is_not_there_is_told(
    opened: OpenedModel, folder: Path
) -> None:
    whole = Embedder(opened=opened)
    half = Embedder(opened=place(replace(opened, model=copy.deepcopy(opened.model)), "cpu", "bf16"))
    picture = [(folder / "red.png").read_bytes]
    for ours, theirs in (
        (whole.images(picture)[0], half.images(picture)[0]),
        (whole.texts(["a"])[0], half.texts(["a"])[0]),
    ):
        assert theirs.dtype == torch.float32
        assert float(torch.nn.functional.cosine_similarity(ours, theirs)) > 0.999 and not torch.equal(ours, theirs)
    with pytest.raises(ConfigError, match="expected a device of this machine"):
        place(replace(opened, model=copy.deepcopy(opened.model)), "cuda:99", "fp32")
    with pytest.raises(ConfigError, match="expected fp32, bf16 or fp16, got 'int8'"):
        place(opened, "cpu", "int8")


def test_a_page_holds_the_pictures_and_escapes_words(folder: Path) -> None:
    source = Files(folder)
    unit = next(unit for unit in range(len(source)) if source.rows(unit)[0].key == "red.png")
    hits = [Hit(key="<red>.png", unit=unit, text=None, cosine=0.5, match=0.25)]
    text = page(["<b>"], [hits], source)
    assert "data:image/jpeg;base64," in text and "&lt;red&gt;.png" in text and "<b>" not in text and "25%" in text
    assert text_table(hits) == "  1   0.500  25.0%  <red>.png"


KILLED = """
import sys, os, signal
from pathlib import Path
import cclm.retrieve.embed as module
from cclm.cli.__main__ import main
write = module.write_part
def dies(folder, part, columns, width):
    if part == 2:
        (folder / ".part-00000002.parquet.partial").write_bytes(b"half")
        os.kill(os.getpid(), signal.SIGKILL)
    write(folder, part, columns, width)
module.write_part = dies
main(sys.argv[1:])
"""


@pytest.mark.slow
def test_the_commands_go_on_after_a_kill(
    opened: OpenedModel, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from cclm.cli.__main__ import main

    write(opened, tmp_path / "model")
    out = tmp_path / "out"
    arguments = ["embed", str(tmp_path / "model"), str(folder), "--to", str(out), "--units-per-file", "3"]
    killed = subprocess.run([sys.executable, "-c", KILLED, *arguments], capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert len(list(out.glob("part-*.parquet"))) == 2
    with written_by_one(out):
        assert main(arguments) == 74 and "a folder that no other command writes" in capsys.readouterr().err
    assert main([*arguments[:4], str(folder / "red.png")]) == 2
    assert main(arguments) == 0
    assert "11 units in 4 files, 5 of them now" in capsys.readouterr().out
    assert columns(out)["unit"] == list(range(11))
    found = ["search", str(out), "a red car", "ein rotes Auto", "--model", str(tmp_path / "model"), "--top-k", "2"]
    assert main([*found, "--rerank", "4", "--html", str(tmp_path / "page.html")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "a red car" and lines[1].startswith("  1 ") and ".png" in lines[2] and "%" in lines[1]
    assert (tmp_path / "page.html").read_text().count("<figure>") == 4
    assert main([*found, "--kind", "text", "--rerank", "2"]) == 2
    assert "they look at images" in capsys.readouterr().err
