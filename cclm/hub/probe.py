"""A fixed set of images and texts, and what a model computes from it, in training and after export.

Six drawn images with captions in two languages each (a small retrieval set), two more as noise, and texts that a
tokenizer might treat differently in two places: many scripts, one too long, one untidy. Four texts come once more
with a word hidden.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn import functional

from cclm.data.collate import pad
from cclm.data.decoding import decode_image
from cclm.data.image import eval_image
from cclm.data.options import ImageTransformConfig
from cclm.data.tokens import TextTokenizer
from cclm.errors import DataError
from cclm.model.answer_decoder import rank_answers
from cclm.model.modeling_cclm import CCLMModel

SHAPES: tuple[tuple[str, str, str, tuple[str, str]], ...] = (
    ("red", "ellipse", "RGB", ("a red circle on white", "ein roter Kreis auf Weiß")),
    ("blue", "rectangle", "RGB", ("a blue rectangle on white", "un rectangle bleu sur fond blanc")),
    ("green", "triangle", "RGBA", ("a green triangle", "зелёный треугольник")),
    ("yellow", "ellipse", "P", ("a yellow circle", "黄色的圆")),
    ("black", "rectangle", "RGB", ("a black box", "黒い四角")),
    ("orange", "triangle", "RGB", ("an orange triangle on white", "مثلث برتقالي")),
)
"""Colour, shape, mode of the PNG file, captions."""
NOISE_MODES = ("L", "LA")
ODD_TEXTS = (
    "자동차",
    "कुत्ते का चेहरा",
    "หน้าสุนัข",
    "פרצוף של כלב",
    "πρόσωπο σκύλου",
    "কুকুরের মুখ",
    "chó",
    "  Two  spaces, punctuation!  And a sentence that is longer than what fits into any caption of this corpus at all ",
)
"""Without an image of their own."""
NUM_MASKED = 4
"""The first so many texts come once more, their first word hidden."""


@dataclass(frozen=True, kw_only=True)
class Probe:
    """The images and texts."""

    images: tuple[bytes, ...]
    """PNG files of several sizes and modes."""
    texts: tuple[str, ...]
    """Captions first."""
    image_of_caption: tuple[int, ...]
    """For each caption the image that it describes."""

    @property
    def num_captions(self) -> int:
        """Texts that describe an image."""
        return len(self.image_of_caption)


@dataclass(frozen=True, kw_only=True)
class ProbeInputs:
    """The same, as a model takes it. T texts, I images."""

    images_ICHW: Tensor
    ids_TL: Tensor
    mask_TL: Tensor
    masked_ids_ML: Tensor
    """The first texts with `<mask>` in place of their first token."""
    image_of_caption: tuple[int, ...]

    def to(self, device: torch.device | str) -> ProbeInputs:
        """On a device."""
        tensors = {name: value.to(device) for name, value in vars(self).items() if isinstance(value, Tensor)}
        return ProbeInputs(**{**vars(self), **tensors})


def make_probe() -> Probe:
    """The fixed set, drawn anew; the same every time (with one version of Pillow)."""
    images = [_drawing(number, *shape[:3]) for number, shape in enumerate(SHAPES)]
    images += [_noise(number, mode) for number, mode in enumerate(NOISE_MODES)]
    captions = [
        (number, caption) for place in (0, 1) for number, shape in enumerate(SHAPES) for caption in [shape[3][place]]
    ]
    return Probe(
        images=tuple(images),
        texts=(*(caption for _, caption in captions), *ODD_TEXTS),
        image_of_caption=tuple(number for number, _ in captions),
    )


def known_part(probe: Probe, tokenizer: TextTokenizer) -> Probe:
    """The probe without texts of which this tokenizer leaves nothing."""

    def is_known(text: str) -> bool:
        try:
            tokenizer.encode([text], 8)
        except DataError:
            return False
        return True

    kept = [number for number, text in enumerate(probe.texts) if is_known(text)]
    return Probe(
        images=probe.images,
        texts=tuple(probe.texts[number] for number in kept),
        image_of_caption=tuple(probe.image_of_caption[number] for number in kept if number < probe.num_captions),
    )


def probe_inputs(
    probe: Probe, tokenizer: TextTokenizer, transform: ImageTransformConfig, max_tokens: int
) -> ProbeInputs:
    """Decode and tokenize as training does."""
    tokens = pad(tokenizer.encode(list(probe.texts), max_tokens), tokenizer.pad_id)
    masked_ids_ML = tokens.ids_BL[:NUM_MASKED].clone()
    masked_ids_ML[:, 1] = tokenizer.mask_id
    pixels = [torch.from_numpy(eval_image(decode_image(image), transform)) for image in probe.images]
    return ProbeInputs(
        images_ICHW=torch.stack(pixels),
        ids_TL=tokens.ids_BL,
        mask_TL=tokens.mask_BL,
        masked_ids_ML=masked_ids_ML,
        image_of_caption=probe.image_of_caption,
    )


@torch.no_grad()
def probe_outputs(model: CCLMModel, inputs: ProbeInputs) -> dict[str, Tensor]:
    """Return `compute`, on the CPU in fp32, and the token ids that were used (`input_ids`)."""
    found = {**compute(model, inputs), "input_ids": inputs.ids_TL}
    return {name: value.float().cpu() for name, value in found.items()}


def compute(model: CCLMModel, inputs: ProbeInputs) -> dict[str, Tensor]:
    """Return what a model computes; every module runs once, as in a training step.

    `image_features` (I, E), `text_features` (T, E), `temperature` (1,), `match_logits` of every image with every
    caption (I · C, 2; of a model that reads several images: of each text with some, (T, 2)), and if there are such
    heads `masked_lm_logits` (M, V) and `boxes` of the captions (C, 4). Of a model fine-tuned for classes or answers
    `class_logits` (T, classes), or the probabilities `answers` (T, K) of the texts themselves as answers.
    """
    num_masked = len(inputs.masked_ids_ML)
    mask_BL = torch.cat([inputs.mask_TL, inputs.mask_TL[:num_masked]])
    text_BLD = model.encode_texts(torch.cat([inputs.ids_TL, inputs.masked_ids_ML]), mask_BL)
    image_IND = model.encode_images(inputs.images_ICHW)
    text_TLD = text_BLD[: len(inputs.ids_TL)]
    if not model.config.pretraining_heads:
        return _finetuned_outputs(model, text_TLD, inputs.mask_TL, image_IND, inputs.ids_TL)
    found = {
        "image_features": model.project_images(image_IND),
        "text_features": model.project_texts(text_TLD, inputs.mask_TL),
        "temperature": model.temperature(),
    }
    if model.fusion_encoder.num_memories > 1:
        found["match_logits"] = _match_several(model, text_TLD, inputs.mask_TL, image_IND)
    else:
        found.update(_fused_outputs(model, text_BLD, mask_BL, image_IND, inputs.image_of_caption, num_masked))
    return found


def _fused_outputs(
    model: CCLMModel,
    text_BLD: Tensor,
    mask_BL: Tensor,
    image_IND: Tensor,
    image_of_caption: Sequence[int],
    num_masked: int,
) -> dict[str, Tensor]:
    """Matching logits, boxes and masked-LM logits, from one call of the fusion encoder."""
    num_images, num_captions = len(image_IND), len(image_of_caption)
    device, num_texts = text_BLD.device, len(text_BLD) - num_masked
    own = torch.tensor(image_of_caption, device=device)
    has_words = model.masked_lm_transform is not None
    text_row = torch.arange(num_captions, device=device).repeat(num_images)
    image_row = torch.arange(num_images, device=device).repeat_interleave(num_captions)
    masked_row = torch.arange(num_texts, num_texts + num_masked, device=device) if has_words else text_row[:0]
    rows, images = torch.cat([text_row, masked_row]), torch.cat([image_row, own[: len(masked_row)]])
    fused_BLD = model.fuse(text_BLD[rows], mask_BL[rows], image_IND[images])
    pairs = slice(0, len(text_row))
    found = {"match_logits": model.match_logits(fused_BLD[pairs], mask_BL[rows][pairs])}
    if model.box_head is not None:
        right = own * num_captions + torch.arange(num_captions, device=device)
        found["boxes"] = model.locate_boxes(fused_BLD[right], mask_BL[rows][right])
    if has_words:
        hidden_MD = model.masked_lm_states(fused_BLD[len(text_row) :, 1])
        found["masked_lm_logits"] = model.decode_with(hidden_MD, functional.linear)
    return found


def _match_several(model: CCLMModel, text_TLD: Tensor, mask_TL: Tensor, image_IND: Tensor) -> Tensor:
    """Text t reads images t, t + 1, … of the probe."""
    memories = _in_turn(image_IND, len(text_TLD), model.config.options().fusion.num_memories)
    return model.match_logits(model.fuse(text_TLD, mask_TL, memories), mask_TL)


def _in_turn(image_IND: Tensor, num_texts: int, number: int) -> list[Tensor]:
    """For text t the images t, t + 1, …"""
    row_T = torch.arange(num_texts, device=image_IND.device)
    return [image_IND[(row_T + place) % len(image_IND)] for place in range(number)]


def _finetuned_outputs(
    model: CCLMModel, text_TLD: Tensor, mask_TL: Tensor, image_IND: Tensor, ids_TL: Tensor
) -> dict[str, Tensor]:
    """Classes of text t with images t, t + 1, …; or the texts themselves, ranked as answers to it."""
    number = model.config.options().fusion.num_memories
    if number > 1:
        memories = _in_turn(image_IND, len(text_TLD), number)
        return {"class_logits": model.class_logits([model.fuse(text_TLD, mask_TL, memories)], mask_TL)}
    images = _in_turn(image_IND, len(text_TLD), model.config.class_images)
    fused = [model.fuse(text_TLD, mask_TL, image) for image in images]
    if model.class_head is not None:
        return {"class_logits": model.class_logits(fused, mask_TL)}
    assert model.answer_decoder is not None, "a model without heads is fine-tuned for classes or answers"
    return {"answers": rank_answers(model.answer_decoder, fused[0], mask_TL, ids_TL, mask_TL, len(ids_TL))[0]}


def _drawing(number: int, colour: str, shape: str, mode: str) -> bytes:
    """One shape on white."""
    width, height = 48 + 16 * (number % 3), 48 + 24 * (number % 2)
    image = Image.new("RGBA", (width, height), "white")
    draw, box = ImageDraw.Draw(image), (6, 8, width - 10, height - 6)
    if shape == "triangle":
        draw.polygon([(box[0], box[3]), (box[2], box[3]), ((box[0] + box[2]) // 2, box[1])], fill=colour)
    else:
        (draw.ellipse if shape == "ellipse" else draw.rectangle)(box, fill=colour)
    return _png(image.convert(mode))


def _noise(number: int, mode: str) -> bytes:
    """Soft noise."""
    values = np.random.default_rng(number).integers(0, 256, (8, 8, 4), dtype=np.uint8)
    return _png(Image.fromarray(values, "RGBA").resize((40 + 24 * number, 56)).convert(mode))


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()
