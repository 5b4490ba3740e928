"""A fixed set of images and texts, and what a model computes from it, in training and after export.

Six drawn images with captions in two languages each (a small retrieval set), two more as noise, and texts that a
tokenizer might treat differently in two places: many scripts, one too long, one untidy. Four texts come once more
with a word hidden.
"""

from __future__ import annotations

import io
from dataclasses import dataclass, replace

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
        return replace(self, **{name: value.to(device) for name, value in vars(self).items() if name[-1].isupper()})


def make_probe() -> Probe:
    """The fixed set, drawn anew; the same every time (with one version of Pillow)."""
    images = [_drawing(number, *shape[:3]) for number, shape in enumerate(SHAPES)]
    images += [_noise(number, mode) for number, mode in enumerate(NOISE_MODES)]
    captions = [shape[3][place] for place in (0, 1) for shape in SHAPES]
    numbers = tuple(range(len(SHAPES)))
    return Probe(images=tuple(images), texts=(*captions, *ODD_TEXTS), image_of_caption=numbers + numbers)


def known_part(probe: Probe, tokenizer: TextTokenizer) -> Probe:
    """The probe without texts of which this tokenizer leaves nothing."""

    def is_known(text: str) -> bool:
        try:
            tokenizer.encode([text], 8)
        except DataError:
            return False
        return True

    kept = [number for number, text in enumerate(probe.texts) if is_known(text)]
    own = tuple(probe.image_of_caption[number] for number in kept if number < probe.num_captions)
    return replace(probe, texts=tuple(probe.texts[number] for number in kept), image_of_caption=own)


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
    heads `masked_lm_logits` (M, V) and `boxes` of the captions (C, 4). Of a model fine-tuned for classes, answers or
    boxes `class_logits` (T, classes), the probabilities `answers` (T, K) of the texts themselves as answers, or `boxes`
    of all texts (T, 4).
    """
    ids_BL = torch.cat([inputs.ids_TL, inputs.masked_ids_ML])
    mask_BL = torch.cat([inputs.mask_TL, inputs.mask_TL[: len(inputs.masked_ids_ML)]])
    text_BLD, image_IND = model.encode_texts(ids_BL, mask_BL), model.encode_images(inputs.images_ICHW)
    text_TLD, mask_TL = text_BLD[: len(inputs.ids_TL)], inputs.mask_TL
    if not model.config.pretraining_heads:
        fused = _fused_in_turn(model, text_TLD, mask_TL, image_IND)
        if model.class_head is not None:
            return {"class_logits": model.class_logits(fused, mask_TL)}
        if model.answer_decoder is None:
            return {"boxes": model.locate_boxes(fused[0], mask_TL)}
        ids_TL = inputs.ids_TL
        return {"answers": rank_answers(model.answer_decoder, fused[0], mask_TL, ids_TL, mask_TL, len(ids_TL))[0]}
    found = {
        "image_features": model.project_images(image_IND),
        "text_features": model.project_texts(text_TLD, mask_TL),
        "temperature": model.temperature(),
    }
    if model.fusion_encoder.num_memories > 1:
        (fused_TLD,) = _fused_in_turn(model, text_TLD, mask_TL, image_IND)
        return found | {"match_logits": model.match_logits(fused_TLD, mask_TL)}
    return found | _fused_outputs(model, inputs, text_BLD, mask_BL, image_IND)


def _fused_outputs(
    model: CCLMModel, inputs: ProbeInputs, text_BLD: Tensor, mask_BL: Tensor, image_IND: Tensor
) -> dict[str, Tensor]:
    """Matching logits, boxes and masked-LM logits, from one call of the fusion encoder."""
    device, num_texts = text_BLD.device, len(inputs.ids_TL)
    own = torch.tensor(inputs.image_of_caption, device=device)
    has_words = model.masked_lm_transform is not None
    text_row = torch.arange(len(own), device=device).repeat(len(image_IND))
    image_row = torch.arange(len(image_IND), device=device).repeat_interleave(len(own))
    masked_row = torch.arange(num_texts, len(text_BLD), device=device) if has_words else text_row[:0]
    rows, images = torch.cat([text_row, masked_row]), torch.cat([image_row, own[: len(masked_row)]])
    fused_BLD = model.fuse(text_BLD[rows], mask_BL[rows], image_IND[images])
    pairs = slice(0, len(text_row))
    found = {"match_logits": model.match_logits(fused_BLD[pairs], mask_BL[rows][pairs])}
    if model.box_head is not None:
        right = own * len(own) + torch.arange(len(own), device=device)
        found["boxes"] = model.locate_boxes(fused_BLD[right], mask_BL[rows][right])
    if has_words:
        hidden_MD = model.masked_lm_states(fused_BLD[len(text_row) :, 1])
        found["masked_lm_logits"] = model.decode_with(hidden_MD, functional.linear)
    return found


def _fused_in_turn(model: CCLMModel, text_TLD: Tensor, mask_TL: Tensor, image_IND: Tensor) -> list[Tensor]:
    """Text t fused with images t, t + 1, … of the probe: with all in one pass, or with each in one of its own."""
    several = model.config.options().fusion.num_memories
    row_T = torch.arange(len(text_TLD), device=image_IND.device)
    places = range(max(several, model.config.class_images))
    images = [image_IND[(row_T + place) % len(image_IND)] for place in places]
    if several > 1:
        return [model.fuse(text_TLD, mask_TL, images)]
    return [model.fuse(text_TLD, mask_TL, image) for image in images]


def _drawing(number: int, colour: str, shape: str, mode: str) -> bytes:
    width, height = 48 + 16 * (number % 3), 48 + 24 * (number % 2)
    image = Image.new("RGBA", (width, height), "white")
    draw, box = ImageDraw.Draw(image), (6, 8, width - 10, height - 6)
    if shape == "triangle":
        draw.polygon([(box[0], box[3]), (box[2], box[3]), ((box[0] + box[2]) // 2, box[1])], fill=colour)
    else:
        (draw.ellipse if shape == "ellipse" else draw.rectangle)(box, fill=colour)
    return _png(image.convert(mode))


def _noise(number: int, mode: str) -> bytes:
    values = np.random.default_rng(number).integers(0, 256, (8, 8, 4), dtype=np.uint8)
    return _png(Image.fromarray(values, "RGBA").resize((40 + 24 * number, 56)).convert(mode))


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()
