"""One call for images and texts of any language: what `AutoProcessor` gives for a CCLM folder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import BatchFeature, ProcessorMixin

from .image_processing_cclm import CCLMImageProcessor  # noqa: F401  # carried along into exported folders


class CCLMProcessor(ProcessorMixin):  # type: ignore[misc]  # transformers is seen untyped
    """An image processor and a tokenizer.

    Args:
        image_processor: a `CCLMImageProcessor`.
        tokenizer: of the folder.
    """

    def __init__(self, image_processor: Any, tokenizer: Any) -> None:
        super().__init__(image_processor, tokenizer)

    def __call__(
        self,
        images: Image.Image | Sequence[Image.Image] | Sequence[Sequence[Image.Image]] | None = None,
        text: str | Sequence[str] | None = None,
        *,
        return_tensors: str | None = "pt",
        padding: bool | str = True,
        truncation: bool = True,
        **kwargs: Any,
    ) -> BatchFeature:
        """Images and/or texts to a model's inputs, padded and truncated.

        Args:
            images: one or several; lists of images for a model that reads several for a text (NLVR2).
            text: one or several, in any language.
            return_tensors: "pt", "np" or None (lists).
            padding: as in tokenizers.
            truncation: cut texts that are longer than the model was trained with.
            kwargs: more options of the tokenizer; `split_special_tokens=False`: `<mask>` in a text is the mask, for
                `fill_mask`, and not what a caption happens to say.

        Returns:
            `pixel_values`, `input_ids`, `attention_mask`, as far as they were asked for; `.to(device, dtype)` moves
            all of them and casts the pixels only.

        Raises:
            ValueError: neither images nor text.
        """
        if images is None and text is None:
            raise ValueError("processor: expected images, text or both, got neither. Pass images=… or text=….")
        data: dict[str, Any] = {}
        if images is not None:
            data.update(self.image_processor(images, return_tensors=return_tensors))
        if text is not None:
            texts = [text] if isinstance(text, str) else list(text)
            options = {"return_tensors": return_tensors, "padding": padding, "truncation": truncation, **kwargs}
            data.update(self.tokenizer(texts, **options))
        return BatchFeature(data=data)

    def post_process_boxes(self, boxes_B4: Tensor, sizes: Sequence[tuple[int, int]]) -> Tensor:
        """Boxes of `CCLMModel.locate` in pixels: left, top, right, bottom, inside the image; (B, 4), float32.

        Args:
            boxes_B4: centre x, centre y, width, height as shares of the image.
            sizes: width and height of each image (`picture.size`).
        """
        boxes_B4 = boxes_B4.float()
        half_B2, centre_B2 = boxes_B4[:, 2:] / 2, boxes_B4[:, :2]
        corners_B4 = torch.cat([centre_B2 - half_B2, centre_B2 + half_B2], 1).clamp(0.0, 1.0)
        return corners_B4 * torch.tensor(sizes, dtype=torch.float32, device=boxes_B4.device).repeat(1, 2)

    def decode_masks(self, filled: Any) -> list[list[tuple[str, float]]]:
        """Words and probabilities for each place that `CCLMModel.fill_mask` filled, best first."""
        rows = zip(filled.token_ids.tolist(), filled.probability.tolist(), strict=True)
        return [[(self.tokenizer.decode([token]).strip(), p) for token, p in zip(*row, strict=True)] for row in rows]


CCLMProcessor.register_for_auto_class()
