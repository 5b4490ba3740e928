"""The medium configuration and its batches: what `benchmarks/step.py` runs on both sides.

Swin of 48 channels and 2, 2, 6, 2 blocks, a text and a fusion encoder of six layers of width 384, XLM-R's vocabulary:
129 million parameters. Batches are 16 images with captions and 16 sentence pairs, each row matched; random ids, but
lengths as the captions of Multi30K have them, or all of 40 tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from cclm.data.batch import Batch, PixelScale
from cclm.data.collate import FusionDraws, int64, mask_text, pad, row_tensors
from cclm.data.options import MaskingConfig
from cclm.engine.options import OptimizerConfig
from cclm.model.configuration_cclm import CCLMConfig
from cclm.model.modeling_cclm import CCLMModel
from cclm.model.options import FusionOptions, ModelOptions, TextOptions, VisionOptions
from cclm.views.image_text.options import ImageTextConfig
from cclm.views.image_text.view import ImageTextBatch
from cclm.views.table import make_views
from cclm.views.text_pair.options import TextPairConfig
from cclm.views.text_pair.view import TextPairSample, collate
from cclm.views.view import View

LAYERS: dict[str, Any] = {
    "num_layers": 6,
    "num_heads": 6,
    "feedforward_width": 1536,
    "norm_position": "post",
    "dropout": 0.1,
    "attention_dropout": 0.1,
    "initializer_range": 0.02,
}
MEDIUM = ModelOptions(
    width=384,
    projection_width=256,
    matching_width=768,
    vision=VisionOptions(
        architecture="swin",
        image_size=224,
        patch_size=4,
        stage_layers=(2, 2, 6, 2),
        stage_heads=(3, 6, 12, 24),
        num_heads=24,
        feedforward_width=1536,
        drop_path=0.1,
    ),
    text=TextOptions(vocab_size=250_002, max_positions=514, token_type=True, pooling="cls", **LAYERS),
    fusion=FusionOptions(**LAYERS),
)
OPTIMIZER = OptimizerConfig(total_steps=1000, learning_rate=1e-4, warmup_steps=10)
MASKS = {"image_text": 12, "text_pair": 16}
"""Most masked tokens of a text, by view."""
MEAN, SPREAD, SHORTEST = 15.0, 0.3, 5
"""Of the lengths in tokens of Multi30K's captions (with estimated pieces): log-normal, 15.5 to 16 on the mean."""


@dataclass(frozen=True, kw_only=True)
class StepCase:
    """What both sides train on."""

    model: ModelOptions = field(default_factory=lambda: MEDIUM)
    rows: int = 16
    """Images, and sentence pairs, in a batch."""
    longest: int = 40
    """Tokens of the longest text; what the published step pads to."""
    full: bool = False
    """All texts as long as the longest, in place of real lengths."""

    def views(self) -> dict[str, View[Any, Any]]:
        """Both views."""
        sizes: dict[str, Any] = {"batch_size": self.rows, "negative_group": self.rows, "matching_rows": self.rows}
        return make_views(
            {"image_text": ImageTextConfig(sources={}, **sizes), "text_pair": TextPairConfig(sources={}, **sizes)}
        )

    def build_model(self, token_layout: Any = "auto") -> CCLMModel:
        """Return the network in training mode; its weights are those of the seed that is set."""
        return CCLMModel(CCLMConfig.from_options(replace(self.model, token_layout=token_layout))).train()

    def batch(self, step: int, multiple: int = 1) -> Batch:
        """Return the batch of a step, texts padded to a multiple of `multiple`; the same one on both sides."""
        generator, rows, pad_id = np.random.default_rng(step), self.rows, self.model.text.pad_token_id
        texts = [self._text(generator) for _ in range(3 * rows)]
        captions, pairs = texts[:rows], list(zip(texts[rows::2], texts[rows + 1 :: 2], strict=True))
        size = self.model.vision.image_size
        image_text = ImageTextBatch(
            images_BCHW=torch.from_numpy(generator.normal(size=(rows, 3, size, size)).astype(np.float32)),
            pixel_scale=PixelScale(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
            text=pad(captions, pad_id, multiple),
            identity_R=int64(range(rows)),
            ledger_S=int64(range(rows)),
            **row_tensors(
                range(rows), [self._draws(ids, "image_text", generator) for ids in captions], True, pad_id, multiple
            ),
        )
        samples = [
            TextPairSample(
                anchor=first,
                others=[second],
                swapped=False,
                languages=(),
                identity=row,
                ledger=row,
                fusion=self._draws(first, "text_pair", generator),
            )
            for row, (first, second) in enumerate(pairs)
        ]
        text_pair = collate(samples, range(rows), True, pad_id, multiple)
        return Batch(step=step, views={"image_text": image_text, "text_pair": text_pair})

    def _text(self, generator: np.random.Generator) -> list[int]:
        drawn = round(MEAN * np.exp(SPREAD * generator.normal()))
        length = self.longest if self.full else min(self.longest, max(SHORTEST, drawn))
        return [0, *generator.integers(4, self.model.text.vocab_size - 1, length - 2).tolist(), 2]

    def _draws(self, ids: list[int], view: str, generator: np.random.Generator) -> FusionDraws:
        vocabulary, masking = self.model.text.vocab_size, MaskingConfig(max_masks=MASKS[view])
        noise = generator.gumbel(size=(2, self.rows)).astype(np.float32)
        return FusionDraws(
            masked=mask_text(ids, masking, vocabulary - 1, vocabulary, generator),
            noise_second_G=noise[0],
            noise_first_G=noise[1],
        )
