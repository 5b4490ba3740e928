"""A whole run in small: a hundred noise images, sixty sentence groups, a network that trains in seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from tests.unit.data.data_sets import make_tokenizer, write_images, write_pairs, write_region_images

RECIPES = Path(__file__).resolve().parents[1] / "pretrain" / "recipes"
LAYERS = {"num_layers": 1, "num_heads": 2, "feedforward_width": 32}


def write_corpus(folder: Path, broken: set[int] | None = None, truncated: set[int] | None = None) -> Path:
    """Shard sets `images` and `pairs`, and a tokenizer."""
    write_images(folder / "images", 96, per_shard=20, broken=broken, truncated=truncated)
    write_pairs(folder / "pairs", 60)
    (folder / "tokenizer").mkdir()
    make_tokenizer().save(str(folder / "tokenizer" / "tokenizer.json"))
    return folder


def recipe(corpus: Path, run: Path, **changes: Any) -> dict[str, Any]:
    """Settings of a tiny joint run; `changes` replace whole top-level blocks."""
    view = {"batch_size": 16, "negative_group": 8, "matching_rows": 8, "num_lanes": 4, "window": 16, "max_tokens": 8}
    transform = {"method": "affine", "size": 16}
    settings: dict[str, Any] = {
        "run_folder": str(run),
        "seed": 7,
        "device": "cpu",
        "views": {
            "image_text": {"sources": {"images": {"path": str(corpus / "images")}}, **view, "transform": transform},
            "text_pair": {"sources": {"pairs": {"path": str(corpus / "pairs")}}, **view, "pairs_per_sample": 2},
        },
        "data": {"tokenizer": str(corpus / "tokenizer")},
        "model": {
            "width": 16,
            "projection_width": 16,
            "matching_width": 32,
            "vision": {**LAYERS, "image_size": 16, "stem_channels": [8, 16], "stem_norm": "layer"},
            "text": {**LAYERS, "max_positions": 8},
            "fusion": LAYERS,
        },
        "objectives": {"hardness": 0.5, "hardness_start_step": 1, "hardness_full_step": 4, "fusion_warmup_steps": 2},
        "optimizer": {"total_steps": 12, "learning_rate": 0.002, "warmup_steps": 2},
        "checkpoint": {"every_steps": 5, "keep": 2},
        "track": {"every_steps": 4, "tensorboard": False},
    }
    return {**settings, **changes}


def with_regions(settings: dict[str, Any], corpus: Path, **data: Any) -> dict[str, Any]:
    """The same with a third view, regions of images; `data` changes settings of the data."""
    if not (corpus / "regions").exists():
        write_region_images(corpus / "regions", 40)
    regions = {
        "sources": {"regions": {"path": str(corpus / "regions")}},
        "batch_size": 12,
        "negative_group": 6,
        "images_per_group": 4,
        "texts_per_image": 3,
        "matching_rows": 8,
        "num_lanes": 4,
        "window": 8,
        "patch_grid": 4,
        "max_tokens": 8,
        "transform": {"size": 16},
    }
    return {
        **settings,
        "views": {**settings["views"], "regions": regions},
        "data": {**settings["data"], **data},
        "model": {**settings["model"], "box_head": True},
    }


def shrink(name: str, corpus: Path, run: Path, **optimizer: Any) -> dict[str, Any]:
    """A shipped recipe at tiny sizes: its schedule, objectives, masking, augmentation and optimizer rules stay."""
    settings: dict[str, Any] = yaml.safe_load((RECIPES / f"{name}.yaml").read_text(encoding="utf-8"))
    whole = with_regions(recipe(corpus, run), corpus)
    sizes = ("sources", "batch_size", "negative_group", "matching_rows", "num_lanes", "window", "max_tokens")
    for name, view in settings["views"].items():
        view |= {key: whole["views"][name][key] for key in sizes}
        if "transform" in view:
            view["transform"]["size"] = 32
    if "regions" in settings["views"]:
        settings["views"]["regions"] |= {"images_per_group": 4, "texts_per_image": 3, "patch_grid": 4}
    settings["data"] |= {"tokenizer": str(corpus / "tokenizer"), "num_workers": 0}
    model = settings["model"]
    model |= {"width": 16, "projection_width": 16, "matching_width": 32}
    for part in ("vision", "text", "fusion"):
        model[part] |= LAYERS
    model["vision"] |= {"image_size": 32, "num_layers": 1}
    own = {"swin": {"window": 2, "stage_layers": [1, 1], "stage_heads": [1, 2]}, "beit": {"patch_size": 8}}
    model["vision"] |= own.get(model["vision"].get("architecture"), {})
    model["text"]["max_positions"] = 20
    settings["optimizer"] |= optimizer
    settings.pop("start", None)
    return {**settings, "run_folder": str(run), "device": "cpu", "precision": "fp32"}


def write_recipe(path: Path, settings: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return path
