"""Does an exported folder compute what the trained model computes? A fresh process says so, or the export fails."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from safetensors.torch import load_file
from torch import Tensor

from cclm.checkpoint import prove
from cclm.checkpoint.open import OpenedModel
from cclm.data.image import decode_image, eval_image
from cclm.errors import CheckpointError

PROBE_TEXTS = (
    "a red car",
    "Hundegesicht",
    "visage souriant avec des lunettes de soleil",
    "гоночный автомобиль",
    "笑脸",
    "イヌの顔",
    "자동차",
    "وجه كلب",
    "कुत्ते का चेहरा",
    "หน้าสุนัข",
    "פרצוף של כלב",
    "πρόσωπο σκύλου",
    "কুকুরের মুখ",
    "uso wa mbwa",
    "chó",
    "  Two  spaces, punctuation!  And a sentence that is longer than what fits into any caption of this corpus at all ",
)
"""Texts in many scripts, one too long, one untidy: what a tokenizer might treat differently in two places."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """How far two tensors are apart."""

    max_abs: float
    """Largest absolute difference."""
    min_cosine: float
    """Smallest cosine between corresponding rows."""


@dataclass(frozen=True, kw_only=True)
class ParityReport:
    """What `parity.json` says: a fresh process without this library, against the model in this process."""

    image_features: Difference
    text_features: Difference
    match_logits: Difference
    num_images: int
    num_texts: int
    dtype: str
    tolerance: float
    """Largest absolute difference allowed."""
    step: int | None = None
    """Updates that the exported checkpoint has seen."""
    checkpoint: str | None = None
    """Its identity (`cclm.checkpoint.identity`)."""

    @property
    def max_abs(self) -> float:
        """The largest difference of all."""
        return max(part.max_abs for part in (self.image_features, self.text_features, self.match_logits))

    def as_json(self) -> str:
        """Return the text of parity.json."""
        return json.dumps({**asdict(self), "max_abs": self.max_abs}, indent=1) + "\n"


def probe_pictures(num_pictures: int = 8) -> list[bytes]:
    """Return PNG files of several sizes and modes (RGB, RGBA, grey, palette), the same every time."""
    modes = ("RGB", "RGBA", "L", "P", "LA")
    files = []
    for number in range(num_pictures):
        generator = np.random.default_rng(number)
        width, height = 32 + 16 * (number % 3), 32 + 24 * (number % 2)
        picture = Image.fromarray(generator.integers(0, 256, (8, 8, 4), dtype=np.uint8), "RGBA").resize((width, height))
        ImageDraw.Draw(picture).ellipse((4, 4, width - 8, height - 8), fill=(40 * number % 256, 90, 200, 255))
        buffer = io.BytesIO()
        picture.convert(modes[number % len(modes)]).save(buffer, format="PNG")
        files.append(buffer.getvalue())
    return files


def expected_outputs(opened: OpenedModel, pictures: Sequence[bytes], texts: Sequence[str]) -> dict[str, Tensor]:
    """Compute with our own decoding, tokens and model what a fresh process shall find."""
    tokens = opened.tokenizer.encode(list(texts), opened.max_tokens)
    length = max(len(row) for row in tokens)
    ids_CL = torch.tensor([[*row, *[opened.tokenizer.pad_id] * (length - len(row))] for row in tokens])
    mask_CL = torch.tensor([[column < len(row) for column in range(length)] for row in tokens])
    pixels = [torch.from_numpy(eval_image(decode_image(picture), opened.transform)) for picture in pictures]
    images_BCHW = torch.stack(pixels)
    with torch.inference_mode():
        return {
            "image_features": opened.model.get_image_features(images_BCHW),
            "text_features": opened.model.get_text_features(ids_CL, mask_CL),
            "match_logits": opened.model.score(
                images_BCHW.repeat_interleave(len(texts), dim=0),
                ids_CL.repeat(len(pictures), 1),
                mask_CL.repeat(len(pictures), 1),
            ),
            "input_ids": ids_CL.float(),
        }


def outputs_of_a_stranger(export: Path, pictures: Sequence[bytes], texts: Sequence[str]) -> dict[str, Tensor]:
    """Load `export` in a fresh, isolated, offline process that cannot import this library.

    Raises:
        CheckpointError: the process failed; its last words are quoted.
    """
    with tempfile.TemporaryDirectory(prefix="cclm-parity-") as name:
        folder = Path(name)
        probe, out = folder / "probe", folder / "out.safetensors"
        probe.mkdir()
        (probe / "texts.json").write_text(json.dumps(list(texts)), encoding="utf-8")
        for number, picture in enumerate(pictures):
            (probe / f"{number:03d}.png").write_bytes(picture)
        environment = {
            **{
                key: value
                for key, value in os.environ.items()
                if not key.startswith(("PYTHON", "HF_", "TRANSFORMERS_"))
            },
            "HF_HUB_OFFLINE": "1",
            "HF_HOME": str(folder / "home"),
            "HF_MODULES_CACHE": str(folder / "modules"),
        }
        command = [
            sys.executable,
            "-I",
            str(Path(prove.__file__).resolve()),
            str(export.resolve()),
            str(probe),
            str(out),
        ]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise CheckpointError(
                where=str(export),
                expected="a folder that `transformers` loads by itself",
                got=done.stderr.strip()[-2000:],
                do="Nothing was exported. Correct the model code that the message names.",
            )
        found: dict[str, Tensor] = load_file(out)
        return found


def difference(expected: Tensor, found: Tensor) -> Difference:
    """Compare two tensors of rows."""
    if expected.shape != found.shape:
        return Difference(max_abs=float("inf"), min_cosine=-1.0)
    cosine = torch.nn.functional.cosine_similarity(expected.double(), found.double(), dim=-1)
    distance = (expected - found).abs().nan_to_num(nan=float("inf"))  # a NaN is larger than any tolerance
    return Difference(max_abs=float(distance.max()), min_cosine=float(cosine.min()))


def prove_parity(
    opened: OpenedModel,
    export: Path,
    *,
    dtype: str,
    tolerance: float,
    pictures: Sequence[bytes] = (),
    texts: Sequence[str] = PROBE_TEXTS,
) -> ParityReport:
    """Compare `export`, loaded by a fresh process, with the model in this process.

    Raises:
        CheckpointError: token ids differ, or a value differs by more than `tolerance`.
    """
    pictures = list(pictures) or probe_pictures()
    expected = expected_outputs(opened, pictures, texts)
    found = outputs_of_a_stranger(export, pictures, texts)
    if not torch.equal(expected["input_ids"], found["input_ids"]):
        raise CheckpointError(
            where=str(export),
            expected="the token ids of the training tokenizer",
            got=f"others: {_first_other_text(expected['input_ids'], found['input_ids'], texts)}",
            do="Nothing was exported. The tokenizer's normaliser has no exact equal in tokenizer.json for this text.",
        )
    report = ParityReport(
        image_features=difference(expected["image_features"], found["image_features"]),
        text_features=difference(expected["text_features"], found["text_features"]),
        match_logits=difference(expected["match_logits"], found["match_logits"]),
        num_images=len(pictures),
        num_texts=len(texts),
        dtype=dtype,
        tolerance=tolerance,
        step=None if opened.checkpoint is None else opened.checkpoint.step,
        checkpoint=None if opened.checkpoint is None else opened.checkpoint.identity,
    )
    if not report.max_abs <= tolerance:
        raise CheckpointError(
            where=str(export),
            expected=f"outputs within {tolerance:g} of the trained model's",
            got=f"a difference of {report.max_abs:.3g}",
            do="Nothing was exported. Look at the image processor, the tokenizer and the weights in this order.",
        )
    return report


def _first_other_text(expected_CL: Tensor, found_CL: Tensor, texts: Sequence[str]) -> str:
    if expected_CL.shape != found_CL.shape:
        return f"shape {tuple(found_CL.shape)}, not {tuple(expected_CL.shape)}"
    row = int((expected_CL != found_CL).any(dim=1).nonzero()[0, 0])
    return repr(texts[row])
