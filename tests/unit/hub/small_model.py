"""A model in small with its tokenizer, as it is opened: fixtures for this folder."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from cclm.data.options import ImageTransformConfig
from cclm.data.tokens import load_tokenizer
from cclm.hub.open import OpenedModel, model_config
from cclm.hub.probe import make_probe
from cclm.model.modeling_cclm import CCLMModel
from cclm.model.options import options_from_dict

SMALL = {
    "width": 16,
    "projection_width": 8,
    "matching_width": 16,
    "vision": {"image_size": 16, "stem_channels": [8, 8, 16], "num_heads": 2, "feedforward_width": 16},
    "text": {"num_layers": 1, "num_heads": 2, "feedforward_width": 16},
    "fusion": {"num_layers": 1, "num_heads": 2, "feedforward_width": 16},
}
TRANSFORM = ImageTransformConfig(size=16, resample="box", mean=(0.8, 0.8, 0.8), std=(0.3, 0.3, 0.3))


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One character, one token: every script of the probe is in the vocabulary."""
    letters = sorted({letter for text in make_probe().texts for letter in text.lower() if letter != " "} | {"▁"})
    vocabulary = {token: number for number, token in enumerate(["<s>", "<pad>", "</s>", "<unk>", "<mask>", *letters])}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    tokenizer.add_special_tokens(["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="session")
def opened(tokenizer_folder: Path) -> OpenedModel:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    tokenizer = load_tokenizer(tokenizer_folder)
    config = model_config(options_from_dict(SMALL), tokenizer)
    return OpenedModel(
        config=config,
        model=CCLMModel(config).eval(),
        tokenizer=tokenizer,
        tokenizer_folder=tokenizer_folder,
        transform=TRANSFORM,
        max_tokens=20,
        origin=tokenizer_folder,
        run_folder=None,
    )
