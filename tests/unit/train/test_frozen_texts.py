"""Frozen texts that are remembered: the same step as without, less work, bounded memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from cclm.config import RunConfig
from cclm.data.loader import StepDataset
from cclm.engine.parts import freeze
from cclm.errors import ConfigError
from cclm.model.kernels import PLAIN
from cclm.train.frozen_texts import FrozenTexts, num_frozen_layers
from cclm.train.step import CrossViewTraining
from tests.left_to_long import left_to_slow
from tests.tiny_run import LAYERS, recipe, write_corpus
from tests.tiny_training import as_config, dataset_of, module_of

EMBEDDINGS, LAYER = "model.text_encoder.embeddings", "model.text_encoder.stack.layers."
FROZEN = [EMBEDDINGS, f"{LAYER}0"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"))


def config_of(corpus: Path, remember_bytes: int, frozen: list[str] = FROZEN, **text: Any) -> RunConfig:
    settings = recipe(corpus, corpus / "run", start={"freeze": frozen, "remember_bytes": remember_bytes})
    settings["model"]["text"] = {**LAYERS, "max_positions": 8, "num_layers": 2, **text}
    return as_config(settings)


def losses_of(module: CrossViewTraining, data: StepDataset, steps: range) -> list[dict[str, float]]:
    found = []
    for step in steps:
        losses = module(data[step])
        losses.total.backward()
        norms = {name: float(value.grad.norm()) for name, value in module.named_parameters() if value.grad is not None}
        found.append({name: float(value) for name, value in losses.metrics.items()} | norms)
        module.zero_grad()
    return found


@pytest.mark.slow
@pytest.mark.parametrize("pooling", ["mean", "mean_first"])
@pytest.mark.parametrize("norm", left_to_slow(["pre", "post"], "post"))
def test_a_step_is_the_same_as_without(corpus: Path, pooling: str, norm: str) -> None:
    """Losses, and gradients of all that trains; some texts come again, at the latest in the same step once more."""
    plain, ours = (module_of(config_of(corpus, size, pooling=pooling, norm_position=norm)) for size in (0, 10**6))
    assert plain.frozen_texts is None and ours.frozen_texts is not None
    data = dataset_of(config_of(corpus, 0))
    expected, found = (losses_of(module, data, range(3)) for module in (plain, ours))
    for one, other in zip(expected, found, strict=True):
        assert one.keys() == other.keys()
        assert list(other.values()) == pytest.approx(list(one.values()), rel=1e-5, abs=1e-6)


@pytest.mark.slow
def test_what_is_remembered_is_what_was_computed_bit_by_bit(corpus: Path) -> None:
    """A module that has seen other steps before, and one that begins here: as after a resume."""
    long, fresh = (module_of(config_of(corpus, 10**6)) for _ in range(2))
    data = dataset_of(config_of(corpus, 0))
    losses_of(long, data, range(4))
    assert losses_of(long, data, range(4, 7)) == losses_of(fresh, data, range(4, 7))


def test_texts_pass_once_and_memory_is_bounded(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = module_of(config_of(corpus, 0)).model.text_encoder
    ids_BL = torch.tensor([[0, 7, 9, 2], [0, 8, 2, 1], [0, 7, 9, 2], [0, 9, 9, 2]])
    mask_BL = ids_BL != 1
    one_text = 4 * 16 * 4  # tokens, width, bytes
    for limit, remembered in ((10**6, 2), (one_text, 1), (one_text - 1, 1), (100, 0)):
        frozen, computed = FrozenTexts(encoder, 16, PLAIN, limit), list[int]()
        monkeypatch.setattr(frozen, "_compute", _counting(frozen, computed))
        first = frozen(ids_BL, mask_BL, 3)
        again = frozen(ids_BL, mask_BL, 3)
        assert torch.equal(first, again) and torch.equal(first[0], first[2])
        assert computed == [2, 2 - remembered]
        assert first[3].any() and not first[1, 3].any(), "masked texts are computed; zero in the padding"


def _counting(frozen: FrozenTexts, computed: list[int]) -> Any:
    inner = frozen._compute

    def counted(new: Any, ids_BL: Any, lengths: Any) -> Any:
        computed.append(len(new))
        return inner(new, ids_BL, lengths)

    return counted


@pytest.mark.parametrize(
    ("frozen", "number"),
    [(FROZEN, 1), ([*FROZEN, f"{LAYER}1"], 2), ([EMBEDDINGS], 0), ([f"{LAYER}0"], 0), ([EMBEDDINGS, f"{LAYER}1"], 0)],
)
def test_only_the_first_layers_count_and_nothing_frozen_is_refused(
    corpus: Path, frozen: list[str], number: int
) -> None:
    module = module_of(config_of(corpus, 0, frozen))
    freeze(module, frozen)
    assert num_frozen_layers(module.model.text_encoder) == number
    assert num_frozen_layers(torch.nn.Identity()) == 0, "a tower of transformers is not looked into"
    if not number:
        with pytest.raises(
            ConfigError, match=r"start.remember_bytes: expected frozen embeddings and first layers of a"
        ):
            module_of(config_of(corpus, 1000, frozen))


def test_dropout_is_refused(corpus: Path) -> None:
    with pytest.raises(ConfigError, match=r"got 1 frozen layers, dropout 0.1 and 0"):
        module_of(config_of(corpus, 1000, dropout=0.1))
