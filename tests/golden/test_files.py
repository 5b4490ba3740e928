"""Key lists, bias tables, and initialisation from the sources that the published models started from."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from torch import Tensor

from cclm.pretrained.bias_tables import resize_bias_table
from cclm.pretrained.families import FAMILIES
from cclm.pretrained.import_cclm import describe
from cclm.pretrained.initialise import source_weights
from cclm.pretrained.published_names import to_published
from tests.golden.sets import GoldenSet, golden_root

KEY_LISTS = {
    "cclm-3m": ("base_keys.txt", 644, 525_677_393),
    "cclm-4m": ("base_keys.txt", 644, 525_677_393),
    "cclm-x2vlm-base": ("x2vlm_base_keys.txt", 587, 615_540_825),
    "cclm-x2vlm-large": ("x2vlm_large_keys.txt", 983, 1_225_073_817),
}


@pytest.mark.parametrize("family", KEY_LISTS)
def test_key_lists_of_the_published_models(family: str) -> None:
    name, num_keys, num_parameters = KEY_LISTS[family]
    rows = describe(FAMILIES[family])
    assert len(rows) == num_keys
    sizes = [torch.Size(shape).numel() for _, shape, _, kind in rows if kind == "param"]
    assert sum(sizes) == num_parameters
    path = golden_root() / name
    if not path.exists():
        pytest.skip(f"no {name} in {golden_root().name}/")
    lines = path.read_text(encoding="utf-8").splitlines()
    expected = {tuple(line.split("\t")) for line in lines if line.strip() and not line.startswith("#")}
    assert {(key, str(list(shape)), dtype, kind) for key, shape, dtype, kind in rows} == expected


def test_bias_tables(golden: GoldenSet) -> None:
    tables = golden.tensors("bias_interp")
    for name in (key.removesuffix(".in") for key in tables if key.endswith(".in")):
        wanted = tables[f"{name}.out"]
        resized = resize_bias_table(tables[f"{name}.in"], wanted.shape[0], 3 if golden.is_x2vlm else 0)
        torch.testing.assert_close(resized, wanted, atol=1e-6, rtol=1e-6, msg=name)


def digest(value: Tensor) -> str:
    """As meta.json has it."""
    return hashlib.sha256(value.contiguous().numpy().tobytes()).hexdigest()[:16]


def sources_of(golden: GoldenSet) -> list[Path]:
    """The set's source files; skipped where it has none."""
    paths = sorted(golden.folder.glob("source_*.safetensors"))
    if not paths:
        pytest.skip(f"{golden.folder.name} has no source files")
    return paths


def test_initialisation_from_the_sources(golden: GoldenSet) -> None:
    state, report = source_weights(sources_of(golden), golden.options)
    published = to_published(state, golden.weights)
    expected = golden.meta["loader"]["from_source"]
    ties = {"decoder.weight": "text_encoder.bert.embeddings.word_embeddings.weight"}
    wrong = []
    for name, sha in expected.items():
        if name.endswith((".relative_position_index", ".position_ids", ".attn_mask")):
            continue
        alias = next((target for end, target in ties.items() if name.endswith(end) and target in published), name)
        alias = alias.replace("decoder.bias", "bias") if alias.endswith("predictions.decoder.bias") else alias
        if alias not in published or digest(published[alias]) != sha:
            wrong.append(name)
    assert wrong == []
    fresh = {name for name in to_published(dict(golden.model().named_parameters()), golden.weights)} - set(published)
    given = golden.meta["loader"].get("init_params", golden.meta.get("init_params"))
    assert fresh == set(given)
    assert report.count("dropped") > 0
