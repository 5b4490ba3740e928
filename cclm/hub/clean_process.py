"""A program for a clean process: load an exported folder with `transformers` alone and compute with it.

    python -I clean_process.py EXPORT PROBE OUT [EXPORT PROBE OUT …]

`PROBE` holds probe.json and images 000.png, 001.png, …; `OUT` gets a .safetensors file with what came out. Run by
`cclm export` in a fresh process that cannot import this library, so that an export that needs it fails here and not at
a user's. It calls what people call (`AutoProcessor`, `get_image_features`, …), not what the training step calls.
"""

from __future__ import annotations

import importlib.abc
import json
import runpy
import sys
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import AutoModel, AutoProcessor

HIDDEN = ("cclm", "pretrain", "finetune", "shards", "launch", "jaxtyping")
"""Our own packages, wherever they are installed; jaxtyping too, which is for our tests."""


class _Hidden(importlib.abc.MetaPathFinder):
    """Makes `HIDDEN` unimportable."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> None:
        """Refuse our names; leave others to the next finder."""
        if fullname.split(".")[0] in HIDDEN:
            raise ModuleNotFoundError(f"{fullname} is hidden: an export must not need it", name=fullname)


def main(*paths: Path) -> None:
    """Compute the outputs of each of the exports."""
    sys.meta_path.insert(0, _Hidden())
    for place in range(0, len(paths), 3):
        write_outputs(*paths[place : place + 3])


def write_outputs(export: Path, probe: Path, out: Path) -> None:
    """Load, compute, write."""
    torch.set_num_threads(1)
    model = AutoModel.from_pretrained(export, trust_remote_code=True, dtype="auto").eval()
    beside = runpy.run_path(str(Path(__file__).with_name("mapped_pages.py")))
    beside["drop_pages_after_use"](model)  # it may be a large one, beside the exporting process
    processor = AutoProcessor.from_pretrained(export, trust_remote_code=True)
    told = json.loads((probe / "probe.json").read_text(encoding="utf-8"))
    images = [Image.open(path) for path in sorted(probe.glob("*.png"))]
    inputs = processor(images, told["texts"]).to(model.dtype)
    with torch.inference_mode():
        found = compute(model, processor, inputs, told["image_of_caption"], told["num_masked"])
    save_file({name: tensor.float().contiguous() for name, tensor in found.items()}, out)


def compute(model: Any, processor: Any, inputs: Any, own: list[int], num_masked: int) -> dict[str, Any]:
    """Return what reference outputs hold (`cclm.hub.probe.probe_outputs`), by the methods that people call."""
    pixels, ids, mask = inputs["pixel_values"], inputs["input_ids"], inputs["attention_mask"]
    row, number = torch.arange(len(ids)), max(model.config.fusion["num_memories"], model.config.class_images)
    several = torch.stack([pixels[(row + place) % len(pixels)] for place in range(number)], 1)
    images = several if number > 1 else several[:, 0]
    if not model.config.pretraining_heads:
        if model.config.num_classes:
            return {"input_ids": ids, "class_logits": model.classify(images, ids, mask)}
        if not model.config.answer_decoder:
            return {"input_ids": ids, "boxes": model.locate(images, ids, mask)}
        probability, _ = model.answer(images, ids, mask, answer_ids=ids, answer_attention_mask=mask, top_k=len(ids))
        return {"input_ids": ids, "answers": probability}
    found = {
        "image_features": model.get_image_features(pixels),
        "text_features": model.get_text_features(ids, mask),
        "temperature": model.temperature(),
        "input_ids": ids,
    }
    if model.config.fusion["num_memories"] > 1:
        return found | {"match_logits": model.score(images, ids, mask, batch_size=16)}
    captions, caption_mask = ids[: len(own)], mask[: len(own)]
    found["match_logits"] = model.score_all(pixels, captions, caption_mask, batch_size=32).flatten(0, 1)
    if model.config.box_head:
        found["boxes"] = model.locate(pixels[own], captions, caption_mask)
    if model.config.masked_lm_head:
        hidden = ids[:num_masked].clone()
        hidden[:, 1] = processor.tokenizer.mask_token_id
        slots = torch.zeros_like(hidden, dtype=torch.bool)
        slots[:, 1] = True
        image = pixels[own[:num_masked]]
        found["masked_lm_logits"] = model.masked_lm_logits(hidden, mask[:num_masked], slot_BL=slots, pixel_values=image)
    return found


if __name__ == "__main__":
    main(*(Path(argument) for argument in sys.argv[1:]))
