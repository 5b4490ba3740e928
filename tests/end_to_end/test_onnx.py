"""Graphs of every kind of model, computed by a process that has neither this library nor torch nor transformers."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from cclm.errors import CheckpointError, ConfigError
from cclm.hub.hub_folder import write_folder
from cclm.hub.onnx_graphs import check_graphs, check_onnx, write_graphs
from cclm.hub.open import OpenedModel
from cclm.hub.reference_outputs import reference_of
from cclm.hub.weight_files import in_memory
from tests.kinds import KINDS, lively_model, with_vocabulary
from tests.left_to_long import left_to_long
from tests.unit.hub.small_model import opened, tokenizer_folder

pytestmark = pytest.mark.slow
__all__ = ["opened", "tokenizer_folder"]
READ_ONE_IMAGE = [kind for kind in KINDS if kind not in ("nlvr_pairs", "siglip2")]
IN_MAKE_TEST = ("own", "swin_regions")


def exported(opened: OpenedModel, kind: str, place: Path) -> tuple[OpenedModel, Path]:
    """A model of a kind, and its folder."""
    model = lively_model(with_vocabulary(KINDS[kind], opened.config.options().text.vocab_size)).eval()
    transform = replace(opened.transform, size=KINDS[kind].vision.image_size)
    found = replace(opened, config=model.config, model=model, transform=transform)
    write_folder(found, place / "export", in_memory(model.state_dict()), dtype="float32", shard_bytes=10**9)
    return found, place / "export"


@pytest.mark.parametrize("kind", left_to_long(READ_ONE_IMAGE, *set(READ_ONE_IMAGE) - set(IN_MAKE_TEST)))
def test_they_compute_the_probe(opened: OpenedModel, tmp_path: Path, kind: str) -> None:
    found, folder = exported(opened, kind, tmp_path)
    check_onnx(found.config, "int8")
    write_graphs(folder, "int8")
    reports = check_graphs(folder, reference_of(found), "int8")
    exact, rounded = reports["fp32"], reports["int8"]
    assert set(exact.parts) == {"image_features", "text_features", "match_logits"}
    assert all(part.holds for part in exact.parts.values())
    assert all(0.9 < part.min_cosine < 1 for part in rounded.parts.values()), rounded.table()
    sizes = {path.name: path.stat().st_size for path in (folder / "onnx").iterdir()}
    assert sizes["text_int8.onnx"] < sizes["text.onnx"]
    shutil.rmtree(folder)


@pytest.mark.long
def test_a_tower_that_cannot_be_traced_is_an_error_of_ours(opened: OpenedModel, tmp_path: Path) -> None:
    """SigLIP 2's looks at the size of each image of a batch by itself."""
    folder = exported(opened, "siglip2", tmp_path)[1]
    with pytest.raises(CheckpointError, match="Nothing was exported"):
        write_graphs(folder, "fp32")


def test_what_has_no_graphs_is_refused(opened: OpenedModel) -> None:
    with pytest.raises(ConfigError, match="fp32 or int8"):
        check_onnx(opened.config, "int4")
    pairs = lively_model(with_vocabulary(KINDS["nlvr_pairs"], 60))
    with pytest.raises(ConfigError, match="features and matching"):
        check_onnx(pairs.config, "fp32")
