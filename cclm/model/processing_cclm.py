"""One call for images and texts of any language: what `AutoProcessor` gives for a CCLM folder."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import BatchFeature, ProcessorMixin

from .image_processing_cclm import HONOURED, NOT_HERE
from .image_rgb import to_rgb  # noqa: F401  # transformers 5.0 copies what an entry file names, and no more

GROUPS = ("common_kwargs", "images_kwargs", "text_kwargs")
"""How `transformers` lets options be given by whom they are for."""


class CCLMProcessor(ProcessorMixin):  # type: ignore[misc]  # transformers is seen untyped
    """A `CCLMImageProcessor` and the folder's tokenizer."""

    def __init__(self, image_processor: Any, tokenizer: Any) -> None:
        super().__init__(image_processor, tokenizer)

    def __call__(
        self,
        images: Image.Image | Sequence[Image.Image] | Sequence[Sequence[Image.Image]] | None = None,
        text: str | Sequence[str] | None = None,
        **options: Any,
    ) -> BatchFeature:
        """Images and/or texts to a model's inputs, padded and truncated.

        Args:
            images: one or several; lists of images for a model that reads several for a text (NLVR2).
            text: one or several, in any language.
            options: of the image processor and of the tokenizer, by name or in `images_kwargs`, `text_kwargs` and
                `common_kwargs`. Without them tensors are returned ("pt"), and texts are padded, and cut where they are
                longer than the model was trained with. `split_special_tokens=False`: `<mask>` in a text is the mask,
                for `fill_mask`, and not what a caption happens to say.

        Returns:
            `pixel_values`, `input_ids`, `attention_mask`, as far as they were asked for; `.to(device, dtype)` moves
            all of them and casts the pixels only.

        Raises:
            ValueError: neither images nor text, or an option that is not supported.
            TypeError: an option that neither image processor nor tokenizer has.
        """
        if images is None and text is None:
            raise ValueError("processor: expected images, text or both, got neither. Pass images=… or text=….")
        for_images, for_text = self._sort_options(options)
        data: dict[str, Any] = {}
        if images is not None:
            data.update(self.image_processor(images, **for_images))
        if text is not None:
            texts = [text] if isinstance(text, str) else list(text) if isinstance(text, Iterable) else []
            if not texts:
                raise ValueError(f"text: expected a text or a list of texts, got {text!r}.")
            if isinstance(text, str) and isinstance(pair := for_text.get("text_pair"), str):
                for_text["text_pair"] = [pair]
            data.update(self.tokenizer(texts, **for_text))
        return BatchFeature(data=data)

    def _sort_options(self, options: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Options of the image processor, and of the tokenizer: those by name come before those in groups."""
        groups = {name: dict(options.pop(name, None) or {}) for name in GROUPS}
        of_text = {*inspect.signature(self.tokenizer.__call__).parameters, "split_special_tokens"} - {"text", "kwargs"}
        of_images = {*HONOURED, *NOT_HERE}
        for name, value in options.items():
            if name in ("audio", "videos", "audio_kwargs", "videos_kwargs") and not value:
                continue
            if name not in of_text | of_images:
                raise TypeError(f"processor: expected an option of its image processor or tokenizer, got {name!r}.")
            for group, names in (("images_kwargs", of_images), ("text_kwargs", of_text)):
                if name in names:
                    groups[group][name] = value
        if unknown := set(groups["text_kwargs"]) - of_text:
            raise TypeError(f"text_kwargs: expected options of the tokenizer, got {', '.join(sorted(unknown))}.")
        common = {"return_tensors": "pt", **groups["common_kwargs"]}
        return {**common, **groups["images_kwargs"]}, {
            "padding": True,
            "truncation": True,
            **common,
            **groups["text_kwargs"],
        }

    def post_process_boxes(self, boxes_B4: Tensor, sizes: Sequence[tuple[int, int]]) -> Tensor:
        """Boxes of `CCLMModel.locate` in pixels: left, top, right, bottom, inside the image; (B, 4), float32.

        `sizes`: width and height of each image (`image.size`).
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
