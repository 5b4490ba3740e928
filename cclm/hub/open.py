"""Open a trained model for use: from an export folder, a run folder, or one checkpoint of a run.

export (config.json, model.safetensors, tokenizer.json, …)    ─┐
run (config.yaml) ─▶ best or newest checkpoint ──┐             ├─▶ OpenedModel
run/checkpoints/step_N ──────────────────────────┴─ full state ─┘
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from transformers.initialization import no_init_weights

from cclm.config import RunConfig
from cclm.data.batch import Tokens
from cclm.data.collate import pad
from cclm.data.decoding import decode_image
from cclm.data.image import RESAMPLE_FILTER, eval_image
from cclm.data.options import ImageTransformConfig, Resample
from cclm.data.tokens import TextTokenizer, load_tokenizer
from cclm.engine.stored_weights import load_full_state
from cclm.errors import CheckpointError, ConfigError
from cclm.files.reading import read_json
from cclm.hub.weight_files import DTYPES
from cclm.model.configuration_cclm import CCLMConfig
from cclm.model.image_rgb import to_rgb
from cclm.model.modeling_cclm import CCLMModel
from cclm.model.options import ModelOptions
from cclm.pretrained.source_files import of_network
from cclm.pretrained.towers import triple
from cclm.recipe.read import CONFIG_FILE, read_run_config
from cclm.report.facts import PARITY_NAME
from cclm.run.checkpoints import CheckpointFacts, identify, newest_complete, pinned
from cclm.views.image_text.options import ImageViewConfig


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """Everything about a trained model but its weights: sizes, and what prepares its inputs."""

    config: CCLMConfig
    tokenizer: TextTokenizer
    tokenizer_folder: Path
    transform: ImageTransformConfig
    max_tokens: int
    """Longest text, with `<s>` and `</s>`."""
    origin: Path
    """The checkpoint or export that the weights came from."""
    run_folder: Path | None = None
    """The run, if it was not an export."""
    checkpoint: CheckpointFacts | None = None
    """Which checkpoint the weights are; None: an export that does not say."""

    def pixels(self, image: bytes | Image.Image) -> Tensor:
        """Return an image (file) as the network takes it, (3, H, W), float32 (errors: `decode_image`)."""
        decoded = decode_image(image) if isinstance(image, bytes) else to_rgb(image)
        return torch.from_numpy(eval_image(decoded, self.transform))

    def tokens(self, texts: Sequence[str]) -> Tokens:
        """Return texts as padded ids with their mask (DataError: a text of which no token is left)."""
        return pad(self.tokenizer.encode(texts, self.max_tokens), self.tokenizer.pad_id)


@dataclass(frozen=True, kw_only=True)
class OpenedModel(Prepared):
    """A model in evaluation mode, with what prepares its inputs."""

    model: CCLMModel
    """fp32, on the CPU, in evaluation mode."""

    @cached_property
    def fingerprint(self) -> str:
        """Tells models apart whose features must not be mixed; the same for a checkpoint and its fp32, bf16 exports.

        Of the weights as they were opened, whatever `place` makes of them.
        """
        digest = hashlib.sha256()
        for _, value in sorted(self.model.state_dict().items()):
            digest.update(value.float().bfloat16().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()


def prepare_run(path: Path) -> Prepared:
    """Find a run's best checkpoint, or the newest of one that was not evaluated, or one checkpoint inside a run.

    Its weights are not read.

    Raises:
        ConfigError: config.yaml cannot be read.
        CheckpointError: it is neither, or the run has no complete checkpoint.
    """
    is_run = (path / CONFIG_FILE).exists()
    run_folder = path if is_run else path.parent.parent
    if not path.is_dir() or not (run_folder / CONFIG_FILE).exists():
        raise CheckpointError(
            where=str(path),
            expected="an export folder (config.json), a run folder (config.yaml) or a checkpoint inside a run folder",
            got="something else" if path.exists() else "nothing at this path",
            do="Give the folder that `python -m pretrain` or `cclm export` wrote.",
        )
    checkpoint = (pinned(path) or newest_complete(path)) if is_run else path
    if checkpoint is None:
        raise CheckpointError(
            where=str(run_folder),
            expected="a complete checkpoint",
            got="none",
            do="Let the run reach its first checkpoint.",
        )
    config = read_run_config(run_folder)
    tokenizer_folder = Path(config.data.tokenizer)
    tokenizer = load_tokenizer(tokenizer_folder, config.data.normalise)
    return Prepared(
        config=model_config(config.model, tokenizer),
        tokenizer=tokenizer,
        tokenizer_folder=tokenizer_folder,
        transform=transform_of(config),
        max_tokens=longest_text(config),
        origin=checkpoint,
        run_folder=run_folder,
        checkpoint=identify(checkpoint),
    )


def open_model(path: Path) -> OpenedModel:
    """Open an export folder, a run folder or a checkpoint folder.

    Raises:
        ConfigError: config.yaml cannot be read.
        CheckpointError: it is none of these, or the run has no complete checkpoint, or the weights do not fit.
    """
    if not is_export(path):
        prepared = prepare_run(path)
        return with_weights(prepared, load_full_state(prepared.origin))
    prepared = prepare_export(path)
    try:
        model = CCLMModel.from_pretrained(path, dtype=torch.float32).eval()
    except (ValueError, RuntimeError) as error:
        raise _other_version(path, error) from error
    return OpenedModel(**{**vars(prepared), "config": model.config, "model": model})


def with_weights(prepared: Prepared, state: Mapping[str, Tensor]) -> OpenedModel:
    """Build the network around these tensors (not copies of them, where they are fp32). Of a model that is `prepared`
    nothing else is taken, its fingerprint neither.

    Raises:
        CheckpointError: names or shapes do not fit the config.
    """
    model = build_model(prepared.config, state, str(prepared.origin))
    return OpenedModel(model=model, **{field.name: getattr(prepared, field.name) for field in fields(Prepared)})


def place(opened: OpenedModel, device: str, dtype: str) -> OpenedModel:
    """Move a model: `device` auto, cpu, cuda, …; `dtype` fp32, bf16 or fp16 (ConfigError: neither of these, or a device
    that is not there).
    """
    if dtype not in DTYPES:
        raise ConfigError(where="--dtype", expected="fp32, bf16 or fp16", got=repr(dtype), do="Choose one of these.")
    if dtype != "fp32":
        opened.fingerprint  # noqa: B018 - of the weights before they are rounded
    wanted = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    try:
        opened.model.to(torch.device(wanted), getattr(torch, DTYPES[dtype]))
    except (RuntimeError, AssertionError) as error:
        got = str(error).splitlines()[0]
        raise ConfigError(where="--device", expected="a device of this machine", got=got, do="Use cpu.") from error
    return opened


def is_export(path: Path) -> bool:
    """Return whether a folder is an export of ours."""
    try:
        content = read_json(path / "config.json", None)
    except ConfigError:
        return False
    return isinstance(content, dict) and content.get("model_type") == CCLMConfig.model_type


def model_config(options: ModelOptions, tokenizer: TextTokenizer) -> CCLMConfig:
    """Build the model's config from a recipe's `model:` block; vocabulary and padding come from the tokenizer."""
    text = replace(options.text, vocab_size=tokenizer.vocab_size, pad_token_id=tokenizer.pad_id)
    return CCLMConfig(**asdict(replace(options, text=text)))


def build_model(config: CCLMConfig, state: Mapping[str, Tensor], where: str) -> CCLMModel:
    """Build a model and fill it; `state` may be a whole training module's (CheckpointError: names or shapes do not fit
    the config).
    """
    state = of_network(state)
    with no_init_weights():  # not on the meta device: buffers that no checkpoint holds get their values here
        model = CCLMModel(config)
    try:
        fp32 = {name: value.float() if value.is_floating_point() else value for name, value in state.items()}
        loaded = model.load_state_dict(fp32, strict=False, assign=True)
    except RuntimeError as error:
        raise misfit(where, " ".join(str(error).split())) from error
    missing = [name for name in loaded.missing_keys if name not in config.options().tied_weights]
    if missing or loaded.unexpected_keys:
        raise misfit(where, f"missing {missing[:5]}, unexpected {loaded.unexpected_keys[:5]}")
    model.tie_weights()
    model.eval()
    return model


def misfit(where: str, got: str) -> CheckpointError:
    """Return the error for weights that do not fit their configuration."""
    return CheckpointError(
        where=where,
        expected="the parameters that config.yaml's `model` describes",
        got=got,
        do="Use the config.yaml that the checkpoint was trained with.",
    )


def transform_of(config: RunConfig) -> ImageTransformConfig:
    """Return the image transform of a run's configuration (for a run without images, of the model's size)."""
    for view in config.views.values():
        if isinstance(view, ImageViewConfig):
            return view.transform
    return ImageTransformConfig(size=config.model.vision.image_size)


def longest_text(config: RunConfig) -> int:
    """Return the tokens of the longest text that a run was trained with."""
    return max(view.max_tokens for view in config.views.values())


def prepare_export(folder: Path) -> Prepared:
    """What an exported folder says about its model, without reading its weights.

    Raises:
        ConfigError: it has no tokenizer.
        CheckpointError: this version does not know its config, or a file is missing.
    """
    try:
        processor = json.loads((folder / "preprocessor_config.json").read_text(encoding="utf-8"))
        settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        config = CCLMConfig.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise _other_version(folder, error) from error
    names: dict[int, Resample] = {int(number): name for name, number in RESAMPLE_FILTER.items()}
    parity = read_json(folder / PARITY_NAME, {})
    is_known = parity.get("checkpoint") is not None
    return Prepared(
        config=config,
        tokenizer=load_tokenizer(folder),
        tokenizer_folder=folder,
        transform=ImageTransformConfig(
            size=processor["size"]["height"],
            method="none",
            resample=names[processor["resample"]],
            mean=triple(processor["image_mean"]),
            std=triple(processor["image_std"]),
        ),
        max_tokens=int(settings["model_max_length"]),
        origin=folder,
        checkpoint=CheckpointFacts(step=parity["step"], identity=parity["checkpoint"]) if is_known else None,
    )


def _other_version(folder: Path, error: Exception) -> CheckpointError:
    return CheckpointError(
        where=str(folder),
        expected="a complete export of this version of the library",
        got=" ".join(str(error).split()),
        do="Open it with the code that it carries: AutoModel.from_pretrained(…, trust_remote_code=True).",
    )
