"""MaRVL's domain pre-training: to which of two images a caption belongs, and that NLVR2 goes on from it."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from cclm.errors import ConfigError
from cclm.files.reading import to_yaml
from cclm.retrieve.embed import FACTS_NAME, EmbeddingFacts, write_part
from cclm.run.checkpoints import newest_complete
from finetune.__main__ import main
from finetune.assignments import Captioned, assigned, write_assignments
from finetune.stand_in import COLOURS, SHAPES
from tests.tiny_finetune import alone, stand_in, write_tokenizer


def group(count: int) -> list[Captioned]:
    """Images of which every second one shows the same as the one before."""
    return [Captioned(key=f"k{n}", identity=f"i{n // 2}", language="en", text=f"t{n}") for n in range(count)]


def test_a_row_holds_its_image_and_a_similar_one_or_two_others() -> None:
    features = np.zeros((8, 2), np.float32)
    features[:4, 0], features[4:, 1] = 1, 1  # two clusters of four, at a temperature of 0.07 as good as apart
    labels = Counter[int]()
    for seed in range(60):
        for number, row in enumerate(assigned(group(8), features, np.random.default_rng(seed))):
            own, same = f"k{number}", f"k{number ^ 1}"
            labels[row["label"]] += 1
            assert same not in row["images"], "it shows the same"
            assert (row["images"].index(own) if own in row["images"] else 2) == row["label"]
            if row["label"] < 2:
                (other,) = set(row["images"]) - {own}
                assert int(other[1:]) // 4 == number // 4, "similar"
            else:
                assert len(set(row["images"])) == 2
    assert all(120 < labels[label] < 200 for label in range(3)), labels


def test_a_shard_set_becomes_rows(tmp_path: Path) -> None:
    shards = stand_in("retrieval", tmp_path / "data") / "train"
    assert write_assignments(shards, None, tmp_path / "rows.jsonl", languages=["de", "es"], seed=3) == 6
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len({row["id"] for row in rows}) == 6 and {row["language"] for row in rows} <= {"de", "es"}
    write_assignments(shards, None, tmp_path / "again.jsonl", languages=["de", "es"], seed=3)
    assert (tmp_path / "again.jsonl").read_bytes() == (tmp_path / "rows.jsonl").read_bytes()
    with pytest.raises(ConfigError) as caught:
        write_assignments(shards, None, tmp_path / "none.jsonl", languages=["fi"], seed=3)
    assert caught.value.where == str(shards) and not (tmp_path / "none.jsonl").exists()


def test_what_is_no_shard_set_is_a_sentence(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["assign", str(tmp_path), "--to", str(tmp_path / "rows.jsonl")]) != 0
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.slow
def test_nlvr2_goes_on_from_it(tmp_path: Path) -> None:
    """The documented commands, on what is drawn: embedded, assigned, pre-trained, fine-tuned."""
    write_tokenizer(tmp_path)
    data, settings = stand_in("marvl", tmp_path / "data"), alone(tmp_path, tmp_path)
    shards = stand_in("retrieval", tmp_path / "images") / "train"
    model = {**settings["model"], "class_images": 2, "num_classes": 3}
    small = {name: settings[name] for name in ("device", "data", "track")} | {"engine": "plain", "precision": "fp32"}
    view = {"batch_size": 6, "max_tokens": 8, "transform": {"method": "affine", "size": 16, "randaugment": None}}
    small |= {"views": {"classify": view}, "finetune": {"epochs": 1}, "optimizer": {"learning_rate": 0.002}}
    (tmp_path / "small.yaml").write_text(to_yaml({**small, "model": model}), encoding="utf-8")
    domain, run = tmp_path / "marvl_domain", tmp_path / "marvl"
    assert main(["assign", str(shards), "--to", str(data / "assignments.jsonl")]) == 0
    words = ["--recipe", str(tmp_path / "small.yaml"), "--data", str(data), "--run_folder"]
    assert main(["marvl_domain", *words, str(domain), "--views.classify.images", str(shards)]) == 0
    assert newest_complete(domain) is not None and not (domain / "results.jsonl").exists()
    (tmp_path / "small.yaml").write_text(to_yaml({**small, "model": {"vision": {"image_size": 16}}}), encoding="utf-8")
    tests = '{sw: "marvl/zero_shot/annotations/marvl-sw.jsonl"}'
    assert main(["marvl", "--checkpoint", str(domain), *words, str(run), "--views.classify.test", tests]) == 0
    fresh = json.loads((run / "start.json").read_text())["fresh"]
    assert fresh and all(name.startswith("class_head.") for name in fresh), "another number of classes"
    assert (run / "results.jsonl").exists()


def test_similar_images_are_known_by_what_embed_wrote(tmp_path: Path) -> None:
    shards, features = stand_in("retrieval", tmp_path / "images") / "train", tmp_path / "features"
    keys = [f"{colour}_{shape}" for colour, shape in product(COLOURS, SHAPES)]
    facts = EmbeddingFacts(
        model="m",
        source="s",
        root=str(shards),
        with_captions=False,
        languages=(),
        num_units=6,
        units_per_part=6,
        width=2,
    )
    features.mkdir()
    (features / FACTS_NAME).write_text(json.dumps(asdict(facts)), encoding="utf-8")
    common = {"kind": "image", "text": None, "language": None, "error": None}
    rows = [{"unit": n, "key": key, "feature": [1.0 - n // 3, n // 3], **common} for n, key in enumerate(keys)]
    write_part(features, 0, rows, facts.storage)
    assert main(["assign", str(shards), "--features", str(features), "--to", str(tmp_path / "rows.jsonl")]) == 0
    for line in (tmp_path / "rows.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        near = {key for n, key in enumerate(keys) if n // 3 == keys.index(row["id"]) // 3}
        assert set(row["images"]) <= near
    write_part(features, 0, rows[1:], facts.storage)
    assert main(["assign", str(shards), "--features", str(features), "--to", str(tmp_path / "no.jsonl")]) != 0
