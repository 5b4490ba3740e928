"""What fine-tuning takes over from its model: sizes, tokenizer, how images are normalised. No torch.

    start.sources ─ the last one that is an export, an import or a run ─▶ model, data.tokenizer, views.*.transform
                    recipe and command line                            ─▶ over it

Heads are those of the task: the view that the recipe names decides.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from cclm.config import RunConfig
from cclm.errors import ConfigError
from cclm.files.node import Node, node_of, plain
from cclm.files.reading import merged, to_plain
from cclm.model.options import ModelOptions, options_from_dict
from cclm.pretrained.families import Task, finetuned
from cclm.views.image_text.options import ImageViewConfig

CONFIG_NAMES = ("config.json", "config.yaml")
"""Of an export, and of a run."""
SHOTS = "{shots}"
"""In paths of views: what finetune.shots says."""
HEADS: Mapping[str, Task] = {
    "classify": "xvnli",
    "answer": "vqa",
    "locate": "grounding",
    "retrieve": "retrieval",
    "image_text": "retrieval",
}
"""View → the published task whose heads it needs."""


def with_start(root: Node, read_run: Callable[[Path], RunConfig]) -> Node:
    """Put what a model to start from gives below a configuration that fine-tunes; any other comes back as it is.

    Raises:
        ConfigError: its files cannot be read.
    """
    given = plain(root)
    if not isinstance(given, dict) or not isinstance(given.get("finetune"), dict):
        return root
    root = _with_shots(root)
    below: dict[str, Any] = {}
    if folder := _folder_of(given):
        below = _taken_over(folder, given, read_run)
    elif "tokenizer" not in _mapping(given.get("data")):
        named = _mapping(given.get("start")).get("sources")
        raise ConfigError(
            where="start.sources",
            expected=f"a model to fine-tune: a run, an export or an import, with {' or '.join(CONFIG_NAMES)}",
            got=", ".join(map(str, named)) if isinstance(named, list) and named else "none",
            do="Give it: --checkpoint MODEL.",
        )
    if given["finetune"].get("epochs") is not None:
        below["optimizer"] = {"total_steps": 1}  # until the rows are counted (`with_epochs`)
    return merged(node_of(below, "model to start from"), root)


def _with_shots(root: Node) -> Node:
    """Put the number of shots into paths of the views: `annotations/ar/train_{shots}.jsonl`, one command for all."""
    assert isinstance(root.value, dict), "it has a finetune block"
    shots, views = root.value["finetune"], root.value.get("views")
    node = shots.value.get("shots") if isinstance(shots.value, dict) else None
    told = "" if node is None or node.value is None else node.text or str(node.value)
    if not told or views is None:
        return root

    def put(node: Node) -> Node:
        if isinstance(node.value, str) and SHOTS in node.value:
            text = node.value.replace(SHOTS, told)
            return replace(node, value=text, text=None if node.text is None else text)
        if isinstance(node.value, dict):
            return replace(node, value={key: put(inner) for key, inner in node.value.items()})
        return node

    return replace(root, value={**root.value, "views": put(views)})


def _folder_of(given: Mapping[str, Any]) -> Path | None:
    start = given.get("start")
    sources = start.get("sources") if isinstance(start, dict) else None
    for source in reversed(sources if isinstance(sources, list) else []):
        folder = Path(os.path.expandvars(str(source))).expanduser()
        if any((folder / name).is_file() for name in CONFIG_NAMES):
            return folder
    return None


def _taken_over(folder: Path, given: Mapping[str, Any], read_run: Callable[[Path], RunConfig]) -> dict[str, Any]:
    views = _mapping(given.get("views"))
    is_run = (folder / "config.yaml").is_file()
    options, tokenizer, transform = (_of_run if is_run else _of_export)(folder, read_run)
    size = _mapping(_mapping(given.get("model")).get("vision")).get("image_size", options.vision.image_size)
    options = _with_heads(options, views, size)
    blocks: dict[str, Any] = {"model": to_plain(options), "data": tokenizer}
    blocks["views"] = {name: {"transform": {**transform, "size": size}} for name in views if name != "text_pair"}
    return blocks


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _with_heads(options: ModelOptions, views: Mapping[str, Any], size: int) -> ModelOptions:
    """The model with the heads of the first view that has any; windows of a Swin grow with the images."""
    for name, task in HEADS.items():
        if name in views:
            settings = _mapping(views[name])
            task = "xvnli" if settings.get("head") == "classes" else task
            task = "nlvr" if task == "xvnli" and settings.get("images_per_row", 1) == 2 else task
            return finetuned(options, task, size)
    return options


def _of_run(folder: Path, read_run: Callable[[Path], RunConfig]) -> tuple[ModelOptions, dict[str, Any], dict[str, Any]]:
    config = read_run(folder)
    transforms = [view.transform for view in config.views.values() if isinstance(view, ImageViewConfig)]
    values = {} if not transforms else {name: getattr(transforms[0], name) for name in ("mean", "std", "resample")}
    data = {"tokenizer": config.data.tokenizer, "normalise": config.data.normalise}
    return config.model, data, to_plain(values)


def _of_export(folder: Path, _: object) -> tuple[ModelOptions, dict[str, Any], dict[str, Any]]:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        images = json.loads((folder / "preprocessor_config.json").read_text(encoding="utf-8"))
        known = asdict(ModelOptions())
        options = options_from_dict({name: value for name, value in config.items() if name in known})
        filters = {0: "nearest", 2: "bilinear", 3: "bicubic", 4: "box"}
        values = {
            "mean": images["image_mean"], "std": images["image_std"], "resample": filters[images["resample"]],
        }  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            where=str(folder), expected="an export or import of ours, with config.json and preprocessor_config.json",
            got=f"{type(error).__name__}: {error}", do="Export the model again (`cclm export`).",
        ) from error  # fmt: skip
    return options, {"tokenizer": str(folder)}, values
