"""Open a trained model for use: from an export folder, a run folder, or one checkpoint of a run.

export (config.json, model.safetensors, tokenizer.json, …)    ─┐
run (config.yaml) ─▶ newest complete checkpoint ─┐             ├─▶ OpenedModel
run/checkpoints/step_N ──────────────────────────┴─ full state ─┘
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cclm.checkpoint.identity import identify
from cclm.checkpoint.layout import newest_complete
from cclm.data.image import ImageTransformConfig, Resample
from cclm.data.tokens import TextTokenizer, load_tokenizer
from cclm.errors import CheckpointError
from cclm.model.configuration_cclm import CCLMConfig
from cclm.model.modeling_cclm import CCLMModel
from cclm.track.facts import PARITY_NAME, CheckpointFacts
from cclm.track.reading import read_json, read_yaml

RESAMPLE_NUMBER: dict[Resample, int] = {"bilinear": 2, "bicubic": 3, "box": 4}
"""PIL's numbers of the resize filters, as an image processor's JSON holds them."""


@dataclass(frozen=True, kw_only=True)
class OpenedModel:
    """A model in evaluation mode, with what prepares its inputs."""

    model: CCLMModel
    """fp32, on the CPU, in evaluation mode."""
    tokenizer: TextTokenizer
    """Text → ids."""
    tokenizer_folder: Path
    """Where tokenizer.json lies."""
    transform: ImageTransformConfig
    """Picture → tensor."""
    max_tokens: int
    """Longest text, with `<s>` and `</s>`."""
    origin: Path
    """The checkpoint or export that the weights came from."""
    run_folder: Path | None
    """The run, if it was not an export."""
    checkpoint: CheckpointFacts | None = None
    """Which checkpoint the weights are; None: an export that does not say."""


def open_model(path: Path) -> OpenedModel:
    """Open an export folder, a run folder or a checkpoint folder.

    Raises:
        ConfigError: config.yaml cannot be read.
        CheckpointError: it is none of these, or the run has no complete checkpoint, or the weights do not fit.
    """
    if is_export(path):
        return _open_export(path)
    if (path / "config.yaml").exists():
        return _open_checkpoint(path, _newest_checkpoint(path))
    run_folder = path.parent.parent
    if path.is_dir() and (run_folder / "config.yaml").exists():
        return _open_checkpoint(run_folder, path)
    raise CheckpointError(
        where=str(path),
        expected="an export folder (config.json), a run folder (config.yaml) or a checkpoint inside a run folder",
        got="something else" if path.exists() else "nothing at this path",
        do="Give the folder that `python -m pretrain` or `cclm export` wrote.",
    )


def is_export(path: Path) -> bool:
    """Return whether a folder is an export of ours."""
    config = path / "config.json"
    if not config.is_file():
        return False
    try:
        content = json.loads(config.read_text(encoding="utf-8"))
    except ValueError:
        return False
    return isinstance(content, dict) and content.get("model_type") == CCLMConfig.model_type


def model_config(arguments: Mapping[str, Any], tokenizer: TextTokenizer) -> CCLMConfig:
    """Build the model's config from a recipe's `model:` block; vocabulary and padding come from the tokenizer."""
    text = {
        **dict(arguments.get("text") or {}),
        "vocab_size": tokenizer.vocab_size,
        "pad_token_id": tokenizer.pad_id,
    }
    return CCLMConfig(**{**arguments, "text": text})


def build_model(config: CCLMConfig, state: Mapping[str, Tensor], where: str) -> CCLMModel:
    """Build a model and fill it; `state` may carry the training module's `model.` before every name.

    Raises:
        CheckpointError: names or shapes do not fit the config.
    """
    prefix = "model."
    if state and all(name.startswith(prefix) for name in state):
        state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    model = CCLMModel(config)
    try:
        loaded = model.load_state_dict({name: tensor.float() for name, tensor in state.items()}, strict=False)
    except RuntimeError as error:
        raise _misfit(where, " ".join(str(error).split())) from error
    tied = set(model.all_tied_weights_keys) if config.tie_word_embeddings else set()
    missing = [name for name in loaded.missing_keys if name not in tied]
    if missing or loaded.unexpected_keys:
        raise _misfit(where, f"missing {missing[:5]}, unexpected {loaded.unexpected_keys[:5]}")
    model.tie_weights()
    model.eval()
    return model


def _misfit(where: str, got: str) -> CheckpointError:
    return CheckpointError(
        where=where,
        expected="the parameters that config.yaml's `model` describes",
        got=got,
        do="Use the config.yaml that the checkpoint was trained with.",
    )


def read_run_config(run_folder: Path) -> dict[str, Any]:
    """Read a run folder's config.yaml.

    Raises:
        ConfigError: it cannot be read.
        CheckpointError: it is not a run's configuration.
    """
    path = run_folder / "config.yaml"
    expected, do = "the configuration that `python -m pretrain` wrote", "Give the folder of a pre-training run."
    content = read_yaml(path, expected=expected, do=do)
    if not isinstance(content, dict) or not isinstance(content.get("data"), dict):
        raise CheckpointError(where=str(path), expected=expected, got="something else", do=do)
    return content


def transform_of(config: Mapping[str, Any]) -> ImageTransformConfig:
    """Return the picture transform of a run's configuration (for a run without pictures, of the model's size)."""
    data = config["data"]
    given = dict((data.get("image_text") or {}).get("transform") or {})
    size = ((config.get("model") or {}).get("vision") or {}).get("image_size")
    if size is not None:
        given.setdefault("size", size)
    tuples: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
    return ImageTransformConfig(**tuples)


def _newest_checkpoint(run_folder: Path) -> Path:
    found = newest_complete(run_folder)
    if found is None:
        raise CheckpointError(
            where=str(run_folder),
            expected="a complete checkpoint",
            got="none",
            do="Let the run reach its first checkpoint.",
        )
    return found


def _open_checkpoint(run_folder: Path, checkpoint: Path) -> OpenedModel:
    from cclm.checkpoint.load import load_full_state

    config = read_run_config(run_folder)
    data = config["data"]
    tokenizer_folder = Path(data["tokenizer"])
    tokenizer = load_tokenizer(tokenizer_folder, data.get("normalise", "none"))
    state = load_full_state(checkpoint)
    views = [data.get(name) or {} for name in ("image_text", "text_pair")]
    return OpenedModel(
        model=build_model(model_config(config.get("model") or {}, tokenizer), state, str(checkpoint)),
        tokenizer=tokenizer,
        tokenizer_folder=tokenizer_folder,
        transform=transform_of(config),
        max_tokens=max(view.get("max_tokens", 0) for view in views) or 64,
        origin=checkpoint,
        run_folder=run_folder,
        checkpoint=identify(checkpoint),
    )


def _open_export(folder: Path) -> OpenedModel:
    processor = json.loads((folder / "preprocessor_config.json").read_text(encoding="utf-8"))
    settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    names = {number: name for name, number in RESAMPLE_NUMBER.items()}
    mean, std = processor["image_mean"], processor["image_std"]
    try:
        model = CCLMModel.from_pretrained(folder, dtype=torch.float32).eval()
    except (ValueError, RuntimeError) as error:
        raise CheckpointError(
            where=str(folder),
            expected="an export of this version of the library",
            got=" ".join(str(error).split()),
            do="Open it with the code that it carries: AutoModel.from_pretrained(…, trust_remote_code=True).",
        ) from error
    return OpenedModel(
        model=model,
        tokenizer=load_tokenizer(folder),
        tokenizer_folder=folder,
        transform=ImageTransformConfig(
            size=processor["size"]["height"],
            method="none",
            resample=names[processor["resample"]],
            mean=(mean[0], mean[1], mean[2]),
            std=(std[0], std[1], std[2]),
        ),
        max_tokens=int(settings["model_max_length"]),
        origin=folder,
        run_folder=None,
        checkpoint=_exported_checkpoint(folder),
    )


def _exported_checkpoint(folder: Path) -> CheckpointFacts | None:
    proof = read_json(folder / PARITY_NAME, {})
    if proof.get("checkpoint") is None:
        return None
    return CheckpointFacts(step=proof["step"], identity=proof["checkpoint"])
