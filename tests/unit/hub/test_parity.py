from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from cclm.errors import CheckpointError
from cclm.hub.open import OpenedModel
from cclm.hub.parity import TOLERANCE, Difference, check_parity, compare, difference, recall_pair
from cclm.hub.reference_outputs import ReferenceOutputs, reference_of
from tests.unit.hub.small_model import TRANSFORM

PARTS = ("image_features", "text_features", "match_logits", "masked_lm_logits")


@pytest.fixture(scope="module")
def reference(opened: OpenedModel) -> ReferenceOutputs:
    return reference_of(opened)


def answer_with(monkeypatch: pytest.MonkeyPatch, outputs: dict[str, Tensor]) -> None:
    monkeypatch.setattr("cclm.hub.parity.outputs_of_clean_process", lambda *_: [outputs])


def test_difference_sees_one_wrong_number_and_a_wrong_shape() -> None:
    rows = torch.randn(3, 5)
    other = rows.clone()
    other[1, 2] += 0.25
    zeros = difference(torch.zeros(2, 3), torch.zeros(2, 3), "match_logits", 1e-4, 1e-5)
    assert zeros.holds, "equal zeros have no direction, and no difference"
    same = difference(rows, rows, "image_features", 1e-4, 1e-5)
    assert same.holds and same.max_abs == 0.0 and same.min_cosine == pytest.approx(1.0)
    assert difference(rows, other, "image_features", 1e-4, 1e-5).max_abs == pytest.approx(0.25)
    for missing in (rows[:2], None):
        assert not difference(rows, missing, "image_features", 1.0, 2.0).holds
    large = difference(100 * rows, 100 * other, "match_logits", 0.01, 1.0)
    assert large.allowed_abs == pytest.approx(float(rows.abs().max())), "logits are judged by their size"


def test_a_row_of_another_direction_fails_by_its_cosine() -> None:
    rows = torch.eye(4)
    other = rows.clone()
    other[2] = torch.tensor([0.0, 0.02, 0.9998, 0.0])
    found = difference(rows, other, "image_features", 0.1, 1e-5)
    assert found.max_abs < found.allowed_abs and not found.holds


@pytest.mark.parametrize("what", PARTS)
@pytest.mark.parametrize("how", ["shifted", "nan", "missing"])
def test_the_check_fails_on_any_wrong_output(
    opened: OpenedModel,
    reference: ReferenceOutputs,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    what: str,
    how: str,
) -> None:
    found = {name: tensor.clone() for name, tensor in reference.outputs.items()}
    if how == "missing":
        del found[what]
    else:
        found[what][1, 0] += 0.05 if how == "shifted" else float("nan")
    answer_with(monkeypatch, found)
    with pytest.raises(CheckpointError, match=rf"got {what}: max \|Δ\| {'0.05' if how == 'shifted' else 'inf'}"):
        check_parity(opened, tmp_path, reference=reference, dtype="float32")


def test_tolerance_can_be_widened_and_bf16_engines_are_compared_as_bf16(
    opened: OpenedModel, reference: ReferenceOutputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {name: tensor.clone() for name, tensor in reference.outputs.items()}
    found["match_logits"][1, 0] += 0.01
    answer_with(monkeypatch, found)
    assert check_parity(opened, tmp_path, reference=reference, dtype="float32", tolerance=0.1).tolerance == 0.1
    report = check_parity(opened, tmp_path, reference=replace(reference, precision="bf16"), dtype="float32")
    assert (report.dtype, report.tolerance) == ("float32", TOLERANCE["bfloat16"].difference)
    assert "8 bits" in report.reason and "match logits" in report.table() and "recall@1 by features" in report.table()
    told = json.loads(report.as_json())
    assert told["max_abs"] == pytest.approx(0.01, abs=1e-6) and set(told["parts"]) == set(PARTS)
    assert set(told["recall"]) == {"features", "matching"} and told["reference"] == reference.origin


def test_other_tokens_are_told_by_their_text(
    opened: OpenedModel, reference: ReferenceOutputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {name: tensor.clone() for name, tensor in reference.outputs.items()}
    found["input_ids"][6, 1] += 1
    answer_with(monkeypatch, found)
    with pytest.raises(CheckpointError, match="token ids of the training tokenizer, got others: 'ein roter Kreis"):
        check_parity(opened, tmp_path, reference=reference, dtype="float32")
    answer_with(monkeypatch, {**found, "input_ids": found["input_ids"][:, :-1]})
    with pytest.raises(CheckpointError, match="others: shape"):
        check_parity(opened, tmp_path, reference=reference, dtype="float32")


def test_another_process_with_another_transform_is_caught(
    opened: OpenedModel, reference: ReferenceOutputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lighter = replace(TRANSFORM, mean=(0.79, 0.8, 0.8))
    answer_with(monkeypatch, reference_of(replace(opened, transform=lighter)).outputs)
    with pytest.raises(CheckpointError, match=r"within 0\.0001 of it, got image_features"):
        check_parity(opened, tmp_path, reference=reference, dtype="float32")


def test_recall_may_move_only_as_far_as_the_tolerance_explains() -> None:
    ours = torch.tensor([[0.9, 0.1, 0.2], [0.5, 0.5001, 0.1], [0.3, 0.2, 0.8]])
    right = torch.tensor([0, 1, 0])
    flipped = ours.clone()
    flipped[1, 0] = 0.5002
    found = recall_pair(ours, flipped, right, 0.001)
    assert (found.reference, found.export) == (pytest.approx(200 / 3), pytest.approx(100 / 3))
    assert (found.lowest, found.highest) == (pytest.approx(100 / 3), pytest.approx(200 / 3)) and found.holds
    assert not recall_pair(ours, flipped, right, 1e-6).holds


def test_a_recall_that_the_tolerance_does_not_explain_is_a_failure(
    opened: OpenedModel, reference: ReferenceOutputs
) -> None:
    swapped = {**reference.outputs, "text_features": reference.outputs["text_features"].flip(0)}
    report = compare(reference, swapped, dtype="bfloat16", tolerance=1e-3, where="here", prepared=opened)
    assert not report.parts["text_features"].holds
    assert Difference(max_abs=0.0, min_cosine=1.0).holds
