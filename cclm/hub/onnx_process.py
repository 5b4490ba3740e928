"""A program for a process without torch and transformers: an exported folder's graphs in onnxruntime.

    python -I onnx_process.py EXPORT PROBE OUT.npz ENDING

It is also the example of how to prepare inputs: numpy, Pillow, tokenizers and onnxruntime are all that it needs.
"""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from PIL import Image
from tokenizers import Tokenizer

HIDDEN = ("cclm", "torch", "transformers")
"""Whoever imports one of them fails here, and not at a user's."""


def pixel_values(folder: Path, images: list[Image.Image]) -> Any:
    """Images to (B, 3, S, S), as preprocessor_config.json says."""
    to_rgb = runpy.run_path(str(folder / "image_rgb.py"))["to_rgb"]
    told = json.loads((folder / "preprocessor_config.json").read_text(encoding="utf-8"))
    mean, std = (np.array(told[name], np.float64)[:, None, None] for name in ("image_mean", "image_std"))
    side = told["size"]["width"], told["size"]["height"]
    pixels = []
    for image in images:
        rgb = to_rgb(image)
        rgb = rgb if rgb.size == side else rgb.resize(side, Image.Resampling(told["resample"]))
        values_CHW = np.asarray(rgb).transpose(2, 0, 1).astype(np.float32)
        pixels.append((values_CHW * told["rescale_factor"] - mean) / std)
    return np.stack(pixels).astype(np.float32)


def tokens(folder: Path, texts: list[str]) -> tuple[Any, Any]:
    """Texts to input_ids and attention_mask (B, L), as tokenizer_config.json says."""
    told = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.encode_special_tokens = True  # "<mask>" in a text is text
    tokenizer.enable_truncation(told["model_max_length"])
    pad = told["pad_token"]
    tokenizer.enable_padding(pad_id=tokenizer.token_to_id(pad), pad_token=pad)
    found = tokenizer.encode_batch(texts)
    return np.array([one.ids for one in found], np.int64), np.array([one.attention_mask for one in found], np.int64)


def main(folder: Path, probe: Path, out: Path, ending: str) -> None:
    """Compute features of all, and the score of each image with each caption."""
    for hidden in HIDDEN:
        sys.modules[hidden] = None  # type: ignore[assignment]
    graphs = {
        name: onnxruntime.InferenceSession(str(folder / "onnx" / f"{name}{ending}"))
        for name in ("image", "text", "match")
    }
    told = json.loads((probe / "probe.json").read_text(encoding="utf-8"))
    images: list[Image.Image] = [Image.open(path) for path in sorted(probe.glob("*.png"))]
    image_features, image_states = graphs["image"].run(None, {"pixel_values": pixel_values(folder, images)})
    ids, mask = tokens(folder, told["texts"])
    text_features, text_states = graphs["text"].run(None, {"input_ids": ids, "attention_mask": mask})
    num_captions = len(told["image_of_caption"])
    captions = np.tile(np.arange(num_captions), len(images))
    rows = np.repeat(np.arange(len(images)), num_captions)
    pairs = {"image_states": image_states[rows], "text_states": text_states[captions], "attention_mask": mask[captions]}
    (logits,) = graphs["match"].run(None, pairs)
    np.savez(out, image_features=image_features, text_features=text_features, match_logits=logits)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4])
