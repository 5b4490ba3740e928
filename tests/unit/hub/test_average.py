"""Averages of models: their weights, their folder, and what cannot be averaged."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from cclm.errors import CheckpointError, ConfigError
from cclm.hub import export as module
from cclm.hub.average import AVERAGE_NAME, average, shares
from cclm.hub.open import OpenedModel, is_export, prepare_export, with_weights
from cclm.hub.reference_outputs import ReferenceOutputs
from cclm.model.configuration_cclm import CCLMConfig
from cclm.model.modeling_cclm import CCLMModel
from tests.unit.hub.test_hub_folder import write


@pytest.fixture
def same_outputs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The outputs of the reference for those of the fresh process, which the tests of exports start."""
    references: list[ReferenceOutputs] = []
    real = module.reference_for

    def remember(*given: object) -> ReferenceOutputs:
        references.append(real(*given))  # type: ignore[arg-type]
        return references[-1]

    monkeypatch.setattr(module, "reference_for", remember)
    monkeypatch.setattr("cclm.hub.parity.outputs_of_clean_process", lambda *_: [references[-1].outputs])


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def folders(opened: OpenedModel, base: Path, number: int) -> list[Path]:
    """Exports of models that differ in their weights."""
    made = []
    for seed in range(number):
        torch.manual_seed(seed)
        state = {name: value + torch.randn_like(value) for name, value in opened.model.state_dict().items()}
        tied = opened.config.options().tied_weights
        made.append(base / str(seed))
        write(with_weights(opened, {name: value for name, value in state.items() if name not in tied}), made[-1])
    return made


def test_every_weight_is_the_weighted_mean(opened: OpenedModel, tmp_path: Path, same_outputs: None) -> None:
    made, to = folders(opened, tmp_path, 3), tmp_path / "soup"
    given = [0.5, 0.25, 0.25]
    report = average(made, given, to)
    stored = [weights_of(folder) for folder in made]
    found = weights_of(to)
    assert found.keys() == stored[0].keys() and report.failures == []
    for name, value in found.items():
        wanted = sum(weight * one[name].double() for weight, one in zip(given, stored, strict=True))
        assert torch.equal(value, torch.as_tensor(wanted).float()), name
    facts = json.loads((to / AVERAGE_NAME).read_text())
    assert facts == {"weights": dict(zip(map(str, made), given, strict=True)), "only_of": {}}
    assert is_export(to) and "0.25" in (to / "README.md").read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "1", "2", "soup"]


def test_the_average_of_a_model_with_itself_is_the_model(
    opened: OpenedModel, tmp_path: Path, same_outputs: None
) -> None:
    (made,) = folders(opened, tmp_path, 1)
    copies = [Path(shutil.copytree(made, tmp_path / name)) for name in ("a", "b")]
    average([made, *copies], shares([], 3), tmp_path / "same")
    before, after = weights_of(made), weights_of(tmp_path / "same")
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_a_head_that_one_model_has_is_its_own(opened: OpenedModel, tmp_path: Path, same_outputs: None) -> None:
    """Pre-trained and fine-tuned: the one has masked words, the other classes, and the rest is averaged."""
    (made,) = folders(opened, tmp_path, 1)
    options = opened.config.options()
    changed = replace(options, masked_lm_head=False, tie_decoder=False, num_classes=3)
    torch.manual_seed(9)
    config = CCLMConfig.from_options(changed)
    write(replace(opened, config=config, model=CCLMModel(config).eval()), tmp_path / "tuned")
    average([made, tmp_path / "tuned"], [0.25, 0.75], tmp_path / "between")
    before, tuned, found = (weights_of(tmp_path / name) for name in ("0", "tuned", "between"))
    assert found.keys() == before.keys() | tuned.keys()
    for name, value in found.items():
        own = [(weight, one[name]) for weight, one in ((0.25, before), (0.75, tuned)) if name in one]
        wanted = sum(weight * one.double() for weight, one in own) / sum(weight for weight, _ in own)
        assert torch.equal(value, torch.as_tensor(wanted).float()), name
    options = prepare_export(tmp_path / "between").config.options()
    assert options.masked_lm_head and options.tie_decoder and options.num_classes == 3
    only_of = json.loads((tmp_path / "between" / AVERAGE_NAME).read_text())["only_of"]
    assert str(made) in only_of["masked_lm_decoder"][0] and len(only_of) >= 2


def test_a_failed_check_leaves_nothing(opened: OpenedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = folders(opened, tmp_path, 2)

    def fails(*_: object, **__: object) -> None:
        raise CheckpointError(expected="the same", got="something else", do="Nothing was exported.")

    monkeypatch.setattr(module, "check_parity", fails)
    with pytest.raises(CheckpointError, match="something else"):
        average(made, [0.5, 0.5], tmp_path / "soup")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "1"]


def test_models_that_differ_in_more_than_weights_are_refused(opened: OpenedModel, tmp_path: Path) -> None:
    (made,) = folders(opened, tmp_path, 1)
    bright = replace(opened, transform=replace(opened.transform, mean=(0.5, 0.5, 0.5)))
    write(bright, tmp_path / "bright")
    write(opened, tmp_path / "wide")
    config = json.loads((tmp_path / "wide" / "config.json").read_text())
    (tmp_path / "wide" / "config.json").write_text(json.dumps({**config, "projection_width": 4}))
    with pytest.raises(ConfigError) as caught:
        average([made, tmp_path / "bright", tmp_path / "wide"], shares([], 3), tmp_path / "soup")
    assert len(caught.value.problems) == 2
    assert "mean of images" in caught.value.problems[0] and "projection_width is 4, not 8" in caught.value.problems[1]
    assert not (tmp_path / "soup").exists()


def test_shares() -> None:
    assert shares([], 4) == [0.25] * 4
    assert shares([0.3], 2) == [0.7, 0.3]
    assert shares([0.2, 0.3, 0.5], 3) == [0.2, 0.3, 0.5]
    assert shares([1.5], 2) == [-0.5, 1.5]  # beyond the second one
    for weights, number in (([0.5], 3), ([0.5, 0.6], 2), ([], 1), ([float("nan")], 2)):
        with pytest.raises(ConfigError):
            shares(weights, number)
