"""Stored features of a teacher: found by text or image, indexed once, never of other files."""

from __future__ import annotations

import shutil
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from cclm.data import teacher
from cclm.data.ledger import image_hash, text_hash
from cclm.data.options import TeacherConfig
from cclm.data.source import Teacher
from cclm.data.teacher import TeacherIndex, open_index, teacher_files
from cclm.errors import ConfigError
from cclm.retrieve.embed_source import Shards
from cclm.shardfile.manifest import Manifest
from cclm.shardfile.options import CacheConfig
from cclm.views.text_pair.options import TextPairConfig
from tests.tiny_teacher import WIDTH, feature_of, knows, write_teacher
from tests.tiny_views import TEXT_PAIR, open_dataset, sources


@pytest.fixture
def config(tmp_path: Path) -> TeacherConfig:
    """Six texts in two files, one of them twice, and one without a feature."""
    folder = tmp_path / "teacher"
    write(folder / "a.parquet", text=["aa", "ab", "ac"], feature=[3 * feature_of("aa"), None, feature_of("ac")])
    write(folder / "below" / "b.parquet", text=["ad", "aa"], feature=[feature_of("ad"), feature_of("other")])
    return TeacherConfig(path=str(folder), width=WIDTH)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CacheConfig:
    monkeypatch.setenv("CCLM_SHARD_CACHE", str(tmp_path / "cache"))
    return CacheConfig()


def write(path: Path, kind: Any = None, **columns: list[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = kind or pa.list_(pa.float32())
    named = {name: pa.array(values, kind if name == "feature" else pa.string()) for name, values in columns.items()}
    parquet.write_table(pa.table(named), path)


def look_up(index: TeacherIndex, *texts: str) -> tuple[Any, list[bool]]:
    found, known = index.look_up([text_hash(text) for text in texts])
    return found, known.tolist()


def test_texts_are_found_and_those_without_a_feature_are_not(config: TeacherConfig, cache: CacheConfig) -> None:
    found, known = look_up(open_index(config, cache), "ac", "ab", "aa", "nothing", "ad", "AA")
    assert known == [True, False, True, False, True, False] and found.dtype == np.float16
    for row, text in ((0, "ac"), (2, "aa"), (4, "ad")):  # unit vectors; of two with one text the first
        np.testing.assert_allclose(found[row], feature_of(text), atol=5e-4)
    assert not found[[1, 3, 5]].any()


def test_an_index_is_made_once(config: TeacherConfig, cache: CacheConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    made, original, opened = list[Path](), teacher._make, list[TeacherIndex]()
    monkeypatch.setattr(teacher, "_make", lambda *given: (made.append(given[-1]), original(*given)))
    threads = [threading.Thread(target=lambda: opened.append(open_index(config, cache))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1 and len(opened) == 4
    assert all(look_up(index, "ad")[1] == [True] for index in opened)


def test_an_index_of_other_files_is_not_taken(config: TeacherConfig, cache: CacheConfig, tmp_path: Path) -> None:
    before = teacher_files(config).identity
    old, _ = look_up(open_index(config, cache), "ad")
    write(Path(config.path) / "below" / "b.parquet", text=["ad", "aa"], feature=[feature_of("new"), feature_of("aa")])
    assert teacher_files(config).identity != before
    new, known = look_up(open_index(config, cache), "ad")
    assert known == [True] and not np.array_equal(new, old)
    np.testing.assert_allclose(new[0], feature_of("new"), atol=5e-4)
    moved = replace(config, path=str(shutil.copytree(config.path, tmp_path / "moved")))
    assert teacher_files(moved).identity == teacher_files(config).identity, "known by its content"


@pytest.mark.parametrize("name", ["features.npy", "keys.npy", "index.json"])
@pytest.mark.parametrize("is_cut", [True, False])
def test_a_damaged_index_is_made_again(
    config: TeacherConfig, cache: CacheConfig, tmp_path: Path, name: str, is_cut: bool
) -> None:
    expected, _ = look_up(open_index(config, cache), "ac", "ad")
    (folder,) = (path for path in tmp_path.glob("cache/teacher-*") if path.is_dir())
    if is_cut and name != "index.json":  # which is replaced as a whole
        (folder / name).write_bytes((folder / name).read_bytes()[:-20])
    else:
        (folder / name).unlink()
    (folder.parent / f".{folder.name}.partial").mkdir()  # of a process that was killed
    found, known = look_up(open_index(config, cache), "ac", "ad")
    assert np.array_equal(found, expected) and known == [True, True]


def test_images_are_found_by_set_and_key(images: Path, more_images: Path, tmp_path: Path, cache: CacheConfig) -> None:
    config = TeacherConfig(path=str(write_teacher(tmp_path / "teacher", [more_images])), width=WIDTH)
    rows = [row for unit in range(31) for row in Shards(more_images, True).rows(unit) if row.text is None]
    own = shutil.copytree(more_images, tmp_path / "moved")
    teacher = Teacher(config, cache, [Manifest.load(own), Manifest.load(images)])
    assert teacher.has_images
    keys = [{"image": [teacher.image_hash(source, row.key)]} for source in (0, 1) for row in rows]
    (found,) = teacher.rows(keys, range(100, 162)).values()
    here = [knows(row) for row in rows]
    assert (found.row_N >= 0).tolist() == here + [False] * 31 and 0 < sum(here) < 31
    assert found.row_N[:31][here].tolist() == [100 + number for number, is_known in enumerate(here) if is_known]
    one = here.index(True)
    np.testing.assert_allclose(found.feature_NT[one], feature_of(rows[one].key), atol=5e-4)


def test_images_of_files_that_name_no_set_are_found_by_key(tmp_path: Path, cache: CacheConfig) -> None:
    features = [feature_of("k1"), feature_of("aa")]
    write(tmp_path / "own" / "x.parquet", text=[None, "aa"], key=["k1", None], feature=features)
    index = open_index(TeacherConfig(path=str(tmp_path / "own"), width=WIDTH), cache)
    assert index.look_up([image_hash("", "k1"), image_hash("a set", "k1")])[1].tolist() == [True, False]
    assert index.facts.num_images == 1 and index.facts.images == ()


def test_what_embed_stores_is_understood(pairs: Path, tmp_path: Path, cache: CacheConfig, opened: Any) -> None:
    from cclm.retrieve.embed import Embedder, EmbeddingFacts, embed

    source, width = Shards(pairs), opened.model.config.projection_width
    facts = EmbeddingFacts(
        model="m", source=source.fingerprint, root=str(pairs), with_captions=False, languages=(), num_units=4,
        units_per_part=3, width=width,
    )  # fmt: skip
    embed(Embedder(opened=opened), source, tmp_path / "out", facts)
    config = TeacherConfig(path=str(tmp_path / "out"), width=width)
    text = str(source.rows(2)[1].text)
    found, known = look_up(open_index(config, cache), text)
    assert known == [True]
    np.testing.assert_allclose(found[0], Embedder(opened=opened).texts([text])[0][0].numpy(), atol=5e-4)
    (tmp_path / "out" / "part-00000001.parquet").unlink()
    with pytest.raises(ConfigError, match="Start `cclm embed` with the same options again"):
        teacher_files(config)


def refusal(config: TeacherConfig, cache: CacheConfig) -> str:
    with pytest.raises(ConfigError) as caught:
        open_index(config, cache)
    return str(caught.value)


def test_what_is_no_teacher_is_refused(config: TeacherConfig, cache: CacheConfig, tmp_path: Path) -> None:
    assert "got nothing there" in refusal(replace(config, path=str(tmp_path / "none")), cache)
    (tmp_path / "empty").mkdir()
    assert "got none in it" in refusal(replace(config, path=str(tmp_path / "empty")), cache)
    place = Path(config.path) / "c.parquet"
    cases: dict[str, dict[str, Any]] = {
        "got sentence (string), feature (list<element: float>)": {"sentence": ["x"], "feature": [feature_of("x")]},
        "got text (string). ": {"text": ["x"]},
        f"features of {WIDTH} numbers (teacher.width), got of 8": {
            "text": ["x"], "feature": [feature_of("x", 8)], "kind": pa.list_(pa.float32(), 8),
        },
        f"features of {WIDTH} numbers (teacher.width), got of [8]": {"text": ["x"], "feature": [feature_of("x", 8)]},
        "got one of zeros": {"text": ["x"], "feature": [np.zeros(WIDTH)]},
        "not finite": {"text": ["x"], "feature": [np.full(WIDTH, np.nan)]},
        "got a row with neither": {"text": [None], "feature": [feature_of("x")]},
    }  # fmt: skip
    for words, columns in cases.items():
        write(place, **columns)
        assert words in refusal(config, cache)
    place.write_bytes(b"no parquet at all")
    assert f"{place}: expected a Parquet file" in refusal(config, cache)
    shutil.rmtree(config.path)
    write(place, text=["x"], feature=[None])
    assert "expected rows with a feature" in refusal(config, cache)


def test_a_batch_says_what_its_teacher_knows(pairs: Path, tmp_path: Path) -> None:
    """Of each sentence and each translation, whatever rows of the batch a rank holds."""
    teacher = TeacherConfig(path=str(write_teacher(tmp_path / "teacher", [pairs])), width=WIDTH)
    view = replace(TEXT_PAIR, sources=sources(pairs), teacher=teacher)
    assert isinstance(view, TextPairConfig)
    source = open_dataset({"text_pair": view}, seed=3).sources["text_pair"]
    count, copies = view.batch_size, view.pairs_per_sample
    whole, own = source.batch(0, range(count), []), source.batch(0, range(2, 4), [])
    first, second = whole.taught["first"], whole.taught["second"]
    assert first.feature_NT.shape == (count, WIDTH) and second.feature_NT.shape == (count * copies, WIDTH)
    samples = [source.sample(0, row)[1] for row in range(count)]
    for row, sample in enumerate(samples):
        for number, text in enumerate(sample.texts):
            place = row if number == 0 else row * copies + number - 1
            side = second if number else first
            is_known = text_hash(text) % 5 != 0
            assert side.row_N[place] == (place if is_known else -1)
            expected = feature_of(text) if is_known else np.zeros(WIDTH)
            np.testing.assert_allclose(side.feature_NT[place], expected, atol=5e-4)
    assert own.taught["second"].row_N.tolist() == second.row_N[2 * copies : 4 * copies].tolist()
    plain = replace(view, teacher=None)
    assert open_dataset({"text_pair": plain}, seed=3).sources["text_pair"].batch(0, range(count), []).taught == {}
