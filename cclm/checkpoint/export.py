"""Write a trained model as a Hugging Face folder that carries its own code, and prove that it works.

.export-NAME/NAME/   weights (safetensors), config.json + modelling code, tokenizer, image processor, README.md
     │ a fresh process that cannot import this library loads it and computes (parity.json), or nothing happens
     ▼
NAME/                renamed into place, an older export of that name goes

The hidden folder is locked by its export; what a killed one left in it goes when the next one starts.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import torch
from tokenizers import Regex, Tokenizer, normalizers, processors
from transformers import PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

from cclm.checkpoint.open import RESAMPLE_NUMBER, OpenedModel, is_export
from cclm.checkpoint.parity import ParityReport, prove_parity
from cclm.data.image import ImageTransformConfig
from cclm.data.tokens import Normalise
from cclm.errors import CheckpointError
from cclm.model.image_processing_cclm import CCLMImageProcessor
from cclm.track.facts import PARITY_NAME

Dtype = Literal["float32", "bfloat16", "float16"]

TOLERANCE: dict[Dtype, float] = {"float32": 1e-4, "bfloat16": 0.25, "float16": 0.03}
"""Largest difference allowed. fp32: rounding of other batch shapes is 1e-6. Halves: three decimal digits of logits."""


def export(
    opened: OpenedModel,
    to: Path,
    *,
    card: Callable[[ParityReport], str],
    dtype: Dtype = "float32",
    tolerance: float | None = None,
) -> ParityReport:
    """Write `opened` to the folder `to` and return the proof, which also goes to `to`/parity.json.

    Args:
        opened: the model and what prepares its inputs.
        to: the folder to make; an export that is already there is replaced, anything else is refused.
        card: makes the text of README.md.
        dtype: of the weights on disk.
        tolerance: largest absolute difference of any output; None: by dtype.

    Raises:
        CheckpointError: `to` is something else, or another export to it is running, or a fresh process computes
            something else. `to` is then untouched.
    """
    refuse_to_overwrite(to)
    to.parent.mkdir(parents=True, exist_ok=True)
    with workshop(to) as hidden:
        folder = hidden / to.name
        write_folder(opened, folder, dtype)
        allowed = TOLERANCE[dtype] if tolerance is None else tolerance
        report = prove_parity(opened, folder, dtype=dtype, tolerance=allowed)
        (folder / PARITY_NAME).write_text(report.as_json(), encoding="utf-8")
        (folder / "README.md").write_text(card(report), encoding="utf-8")
        for path in folder.iterdir():
            path.chmod(0o644)  # safetensors writes with the mode of a temporary file
        if to.exists():
            to.rename(hidden / "old")
        folder.rename(to)
    return report


@contextmanager
def workshop(to: Path) -> Iterator[Path]:
    """Give an empty hidden folder beside `to`, which is locked while it is used and gone afterwards.

    The lock ends with its process, however that ends; so whatever lies there unlocked was left by a dead export.

    Raises:
        CheckpointError: another export to the same folder is running.
    """
    hidden = to.with_name(f".export-{to.name}")
    hidden.mkdir(exist_ok=True)
    descriptor = os.open(hidden, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise CheckpointError(
                where=str(to),
                expected="one export at a time",
                got="another one that is running",
                do="Wait for it, or give another `--to`.",
            ) from error
        for leftover in hidden.iterdir():
            shutil.rmtree(leftover)
        try:
            yield hidden
        finally:
            shutil.rmtree(hidden)
    finally:
        os.close(descriptor)


def refuse_to_overwrite(to: Path) -> None:
    """Raise `CheckpointError` if `to` is anything but an export, an empty folder, or nothing."""
    if to.exists() and not is_export(to) and not (to.is_dir() and not any(to.iterdir())):
        raise CheckpointError(
            where=str(to),
            expected="a new folder or an older export",
            got="a folder or file with other contents",
            do="Give another `--to`, or move it away.",
        )


def write_folder(opened: OpenedModel, folder: Path, dtype: Dtype) -> None:
    """Write weights, config, modelling code, tokenizer and image processor."""
    folder.mkdir(parents=True)
    model = type(opened.model)(opened.model.config)
    model.load_state_dict(opened.model.state_dict())
    transformers_logging.disable_progress_bar()
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    hub_tokenizer(opened.tokenizer_folder, opened.tokenizer.normalise, opened.max_tokens).save_pretrained(folder)
    hub_image_processor(opened.transform).save_pretrained(folder)


def hub_image_processor(transform: ImageTransformConfig) -> CCLMImageProcessor:
    """Return the image processor that does what the evaluation transform does."""
    return CCLMImageProcessor(
        size={"height": transform.size, "width": transform.size},
        resample=RESAMPLE_NUMBER[transform.resample],
        image_mean=transform.mean,
        image_std=transform.std,
    )


def hub_tokenizer(folder: Path, normalise: Normalise, max_tokens: int) -> PreTrainedTokenizerFast:
    """Return a tokenizer for `AutoTokenizer`: what our code does around tokenizer.json becomes part of it.

    That is the preparation of texts (a normaliser), `<s>` … `</s>` (a template) and the longest length.
    """
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    own = [tokenizer.normalizer] if tokenizer.normalizer is not None else []
    tokenizer.normalizer = normalizers.Sequence([*_preparation(normalise), *own])
    frame = [(token, tokenizer.token_to_id(token)) for token in ("<s>", "</s>")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=frame
    )
    names = {"bos": "<s>", "eos": "</s>", "cls": "<s>", "sep": "</s>", "pad": "<pad>", "mask": "<mask>"}
    if tokenizer.token_to_id("<unk>") is not None:
        names["unk"] = "<unk>"
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=max_tokens,
        model_input_names=["input_ids", "attention_mask"],
        padding_side="right",
        **{f"{name}_token": token for name, token in names.items()},
    )


def _preparation(normalise: Normalise) -> list[normalizers.Normalizer]:
    """What `cclm.data.tokens` does to a text before tokenizer.json sees it, as normalisers."""
    if normalise == "none":
        return [normalizers.Strip()]
    return [
        normalizers.Lowercase(),
        normalizers.Replace(Regex(r"[,.'!?\"()*#:;~/-]"), " "),
        normalizers.Replace("<person>", "person"),
        normalizers.Replace(Regex(r"\s{2,}"), " "),
        normalizers.Strip(),
    ]
