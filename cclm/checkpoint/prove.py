"""A stranger's program: load an exported folder with `transformers` alone and compute with it.

    python -I prove.py EXPORT PROBE OUT

`PROBE` holds texts.json and pictures 000.png, 001.png, …; `OUT` gets a .safetensors file with what came out. Run by
`cclm export` in a fresh process that cannot import this library: its import is blocked below, so that an export that
needs it fails here and not at a user's.
"""

from __future__ import annotations

import importlib.abc
import json
import sys
from pathlib import Path
from typing import Any

HIDDEN = ("cclm", "pretrain", "shards", "launch")


class _Hidden(importlib.abc.MetaPathFinder):
    """Makes our own packages unimportable, wherever they are installed."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> None:
        """Refuse our names; leave others to the next finder."""
        if fullname.split(".")[0] in HIDDEN:
            raise ModuleNotFoundError(f"{fullname} is hidden: an export must not need it", name=fullname)


def main(export: Path, probe: Path, out: Path) -> None:
    """Load and compute: image features, text features, and the matching logits of every image with every text."""
    sys.meta_path.insert(0, _Hidden())
    import torch
    from PIL import Image
    from safetensors.torch import save_file
    from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

    torch.set_num_threads(1)
    model = AutoModel.from_pretrained(export, trust_remote_code=True, dtype="auto").eval()
    tokenizer = AutoTokenizer.from_pretrained(export, trust_remote_code=True)
    processor = AutoImageProcessor.from_pretrained(export, trust_remote_code=True)
    texts = json.loads((probe / "texts.json").read_text(encoding="utf-8"))
    pictures = [Image.open(path) for path in sorted(probe.glob("*.png"))]
    tokens = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
    pixels = processor(pictures, return_tensors="pt")["pixel_values"].to(model.dtype)
    with torch.inference_mode():
        image_BE = model.get_image_features(pixels)
        text_CE = model.get_text_features(**tokens)
        logits_P2 = model.score(
            pixels.repeat_interleave(len(texts), dim=0),
            tokens["input_ids"].repeat(len(pictures), 1),
            tokens["attention_mask"].repeat(len(pictures), 1),
        )
    leaked = sorted(name for name in sys.modules if name.split(".")[0] in HIDDEN)
    if leaked:
        raise SystemExit(f"the export imported {leaked}")
    found = {
        "image_features": image_BE,
        "text_features": text_CE,
        "match_logits": logits_P2,
        "input_ids": tokens["input_ids"],
    }
    save_file({name: tensor.float().contiguous() for name, tensor in found.items()}, out)


if __name__ == "__main__":
    main(*(Path(argument) for argument in sys.argv[1:4]))
