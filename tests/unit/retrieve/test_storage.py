"""Features in fewer components and smaller types: what is stored, what comes back, what is said about the loss."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pyarrow import parquet
from torch import Tensor
from torch.nn import functional

from cclm.cli.__main__ import main
from cclm.errors import ConfigError
from cclm.hub.open import OpenedModel
from cclm.retrieve.embed import FACTS_NAME, Embedder, embed, prepare_folder
from cclm.retrieve.embed_source import Shards
from cclm.retrieve.search import load_embedded, search
from cclm.retrieve.storage import Storage, StorageCost, storage_of
from tests.unit.data.data_sets import write_images
from tests.unit.hub.test_hub_folder import write
from tests.unit.retrieve.test_embed import facts_of


def features(rows: int, width: int = 16, seed: int = 0) -> Tensor:
    return functional.normalize(torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)), dim=1)


@pytest.mark.parametrize(
    ("store", "bytes_each", "least"), [("fp32", 4, 1 - 1e-6), ("fp16", 2, 1 - 1e-6), ("int8", 1, 0.9998)]
)
@pytest.mark.parametrize("width", [16, 5])
def test_what_comes_back_is_near_the_first_components(store: str, bytes_each: int, least: float, width: int) -> None:
    storage, rows = Storage(width=width, store=store), features(50)
    packed = storage.pack(rows)
    assert packed.shape == (50, width) and packed.nbytes == 50 * width * bytes_each
    found, expected = storage.unpack(packed), functional.normalize(rows[:, :width], dim=1)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(50))
    assert float((found * expected).sum(1).min()) > least
    if store == "fp32":
        assert torch.equal(found, storage.cut(rows)) and (width < 16 or torch.equal(found, rows))
    if store == "int8":
        assert packed.dtype == np.int8 and (np.abs(packed).max(1) == 127).all()


def test_a_row_of_zeros_stays_one() -> None:
    storage = Storage(width=3, store="int8")
    assert not storage.unpack(storage.pack(torch.zeros(2, 8))).any()


@pytest.mark.parametrize(
    ("width", "store", "words"),
    [(9, "fp32", "expected 1 to 8"), (-1, "fp32", "1 to 8"), (0, "int4", "fp32, fp16, int8")],
)
def test_what_cannot_be_stored_is_refused(width: int, store: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        storage_of(width, store, 8)


def test_nothing_asked_for_is_everything() -> None:
    assert storage_of(0, "fp32", 8).is_all_of(8)
    assert not storage_of(4, "fp32", 8).is_all_of(8) and not storage_of(0, "int8", 8).is_all_of(8)


def rows_of(kind: str, feature_NE: Tensor) -> list[dict[str, Any]]:
    return [{"unit": unit, "kind": kind, "feature": row.numpy()} for unit, row in enumerate(feature_NE)]


def test_the_cost_is_what_search_in_the_stored_rows_loses() -> None:
    """By hand: neighbours and images of texts, in all components and in the kept ones."""
    images, storage = features(60), Storage(width=4)
    texts = functional.normalize(images + 0.4 * features(60, seed=1), dim=1)
    cost = StorageCost(storage)
    cost.add(rows_of("image", images))
    cost.add([*rows_of("text", texts), {"unit": 99, "kind": "text", "feature": None}])
    found = {what: (now, full) for what, now, full in cost.measured()}
    assert set(found) == {
        "nearest 10 images of images kept", "nearest 10 texts of texts kept", "text → image R@10"
    }  # fmt: skip
    cut = functional.normalize(images[:, :4], dim=1)
    kept = []
    for row in range(60):
        others = [other for other in range(60) if other != row]
        full, now = (
            {others[place] for place in (of[others] @ of[row]).topk(10).indices.tolist()} for of in (images, cut)
        )
        kept.append(len(full & now) / 10)
    assert found["nearest 10 images of images kept"][0] == pytest.approx(sum(kept) / 60)
    in_full = (texts @ images.T).topk(10, dim=1).indices == torch.arange(60)[:, None]
    now = (functional.normalize(texts[:, :4], dim=1) @ cut.T).topk(10, dim=1).indices == torch.arange(60)[:, None]
    assert found["text → image R@10"] == pytest.approx(
        (float(now.any(1).float().mean()), float(in_full.any(1).float().mean()))
    )
    assert found["text → image R@10"][0] < found["text → image R@10"][1]


def test_few_rows_are_not_measured() -> None:
    cost = StorageCost(Storage(width=4))
    cost.add(rows_of("image", features(10)))
    assert list(cost.measured()) == []


@pytest.mark.parametrize("store", ["fp16", "int8"])
def test_search_reads_what_embed_stored(opened: OpenedModel, tmp_path: Path, store: str) -> None:
    write_images(tmp_path / "images", 12)
    source = Shards(tmp_path / "images", True)
    whole, small = facts_of(opened, source, 5), replace(facts_of(opened, source, 5), width=6, store=store)
    for name, facts in (("whole", whole), ("small", small)):
        embed(Embedder(opened=opened), source, tmp_path / name, facts)
    full, kept = load_embedded(tmp_path / "whole"), load_embedded(tmp_path / "small")
    assert kept.feature_NE.shape == (12, 6) and kept.feature_NE.dtype == torch.float32
    expected = functional.normalize(full.feature_NE[:, :6], dim=1)
    assert float((kept.feature_NE * expected).sum(1).min()) > 0.9998
    stored = parquet.read_table(tmp_path / "small").schema.field("feature").type
    assert stored.list_size == 6 and str(stored.value_type) == {"fp16": "halffloat", "int8": "int8"}[store]
    (hits,) = search(opened, kept, ["a red car"], top_k=12)
    query = functional.normalize(Embedder(opened=opened).texts(["a red car"])[0][:, :6], dim=1)
    cosines = dict(zip(full.key, (expected @ query[0]).tolist(), strict=True))
    assert all(hit.cosine == pytest.approx(cosines[hit.key], abs=0.02) for hit in hits)
    with pytest.raises(ConfigError, match="another width, another store"):
        prepare_folder(tmp_path / "small", whole)


def test_a_set_of_an_older_version_goes_on(opened: OpenedModel, tmp_path: Path) -> None:
    """Its facts know no type of stored features: it was fp32."""
    write_images(tmp_path / "images", 3)
    source, out = Shards(tmp_path / "images"), tmp_path / "out"
    facts = facts_of(opened, source)
    embed(Embedder(opened=opened), source, out, facts)
    known = json.loads((out / FACTS_NAME).read_text())
    assert known.pop("store") == "fp32"
    (out / FACTS_NAME).write_text(json.dumps(known))
    assert prepare_folder(out, facts) == [] and load_embedded(out).facts == facts
    with pytest.raises(ConfigError, match="another store"):
        prepare_folder(out, replace(facts, store="int8"))


def test_the_command_says_what_it_costs(
    opened: OpenedModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(opened, tmp_path / "model")
    (tmp_path / "pictures").mkdir()
    for number in range(12):
        picture = Image.effect_mandelbrot((20 + number, 30), (-2, -1.5, 1, 1.5), 5 + number).convert("RGB")
        picture.save(tmp_path / f"pictures/{number}.png")
    command = ["embed", str(tmp_path / "model"), str(tmp_path / "pictures"), "--to"]
    assert main([*command, str(tmp_path / "small"), "--width", "4", "--store", "int8"]) == 0
    told = capsys.readouterr().out
    assert "stored as int8, 4 components; against all of them in fp32, of 12 rows:" in told
    assert "  nearest 10 images of images kept: " in told and "%" in told
    assert main([*command, str(tmp_path / "whole")]) == 0
    assert "stored as" not in capsys.readouterr().out
    assert main([*command, str(tmp_path / "none"), "--width", "400"]) == 2
    assert "expected 1 to 8, the width of the model's features, got 400" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()
