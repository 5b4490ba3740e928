"""A folder as `transformers` loads it: weights, config, the code of `cclm/model`, tokenizer and processors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, normalizers, processors
from transformers import PreTrainedTokenizerFast
from transformers.dynamic_module_utils import custom_object_save

from cclm.data.image import RESAMPLE_FILTER
from cclm.data.options import ImageTransformConfig, Normalise
from cclm.data.tokenizer_file import file_bytes, special_tokens, tokenizer_file
from cclm.data.tokens import read_special_as_text
from cclm.hub.open import Prepared, misfit
from cclm.hub.weight_files import Dtype, Source, write_weights
from cclm.model.configuration_cclm import CCLMConfig
from cclm.model.image_processing_cclm import CCLMImageProcessor
from cclm.model.modeling_cclm import CCLMModel
from cclm.model.processing_cclm import CCLMProcessor
from cclm.model.sentence_module_cclm import CCLMSentenceModule
from cclm.pretrained.import_cclm import meta_model

UNKNOWN = ("[UNK]", "<unk>")
"""What stands for what a vocabulary has no piece for."""


def write_folder(prepared: Prepared, folder: Path, source: Source, *, dtype: Dtype, shard_bytes: int) -> None:
    """Make `folder` and write everything into it but README.md and the parity report (CheckpointError: names or shapes
    of the weights do not fit the config).
    """
    config = CCLMConfig(**{**prepared.config.to_dict(), "mask_token_id": prepared.tokenizer.mask_id})
    write_model(config, folder, source, dtype=dtype, shard_bytes=shard_bytes, origin=str(prepared.origin))
    image_processor = hub_image_processor(prepared.transform)
    tokenizer = hub_tokenizer(prepared.tokenizer_folder, prepared.tokenizer.normalise, prepared.max_tokens)
    image_processor.save_pretrained(folder)
    CCLMProcessor(image_processor, tokenizer).save_pretrained(folder)
    if config.pretraining_heads:
        write_sentence_module(folder)


def write_sentence_module(folder: Path) -> None:
    """Let `sentence-transformers` find what it runs of a folder with a dual encoder."""
    custom_object_save(CCLMSentenceModule, folder)
    kind = f"{CCLMSentenceModule.__module__.rpartition('.')[2]}.{CCLMSentenceModule.__name__}"
    files: dict[str, Any] = {
        "modules.json": [{"idx": 0, "name": "0", "path": "", "type": kind}],
        "config_sentence_transformers.json": {"model_type": "SentenceTransformer", "similarity_fn_name": "cosine"},
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def write_model(
    config: CCLMConfig, folder: Path, source: Source, *, dtype: Dtype | None, shard_bytes: int, origin: str
) -> None:
    """Make `folder`; write config.json, the modelling code and the weights (tied ones once).

    Raises:
        CheckpointError: names or shapes of the weights do not fit the config.
    """
    folder.mkdir(parents=True)
    model = meta_model(config.options())
    names = stored_names(model, source, origin)
    write_weights(source, folder, names=names, dtype=dtype, shard_bytes=shard_bytes)
    saved = CCLMConfig(**config.to_dict())
    saved.architectures = [type(model).__name__]
    saved.dtype = dtype or str(source()[names[0]].dtype).removeprefix("torch.")
    saved.auto_map = {
        "AutoConfig": "configuration_cclm.CCLMConfig",
        "AutoModelForZeroShotImageClassification": "modeling_cclm.CCLMModel",  # for the pipeline of that name
    }
    custom_object_save(model, folder, config=saved)
    saved.save_pretrained(folder)


def stored_names(model: CCLMModel, source: Source, origin: str) -> list[str]:
    """What is to be written, in the network's order, second names of tied weights left out (CheckpointError: a weight
    is missing, left over or of another shape).
    """
    stored, tied = source(), dict(model.all_tied_weights_keys)
    wanted = {name: tuple(value.shape) for name, value in model.state_dict().items() if name not in tied}
    missing = [name for name in wanted if name not in stored]
    others = [name for name in stored if name not in wanted and name not in tied]
    misfits = [
        f"{name} {list(stored[name].shape)}"
        for name, shape in wanted.items()
        if name in stored and stored[name].shape != shape
    ]
    if missing or others or misfits:
        raise misfit(origin, f"missing {missing[:5]}, unexpected {others[:5]}, of another shape {misfits[:5]}")
    return list(wanted)


def hub_image_processor(transform: ImageTransformConfig) -> CCLMImageProcessor:
    """Return the image processor that does what the evaluation transform does."""
    return CCLMImageProcessor(
        size={"height": transform.size, "width": transform.size},
        resample=int(RESAMPLE_FILTER[transform.resample]),
        image_mean=transform.mean,
        image_std=transform.std,
    )


def hub_tokenizer(folder: Path, normalise: Normalise, max_tokens: int) -> PreTrainedTokenizerFast:
    """Return a tokenizer for `AutoTokenizer`: what our code does around tokenizer.json becomes part of it.

    That is the preparation of texts (a normaliser), `<s>` … `</s>` (a template) and the longest length. "<mask>" in a
    text is text, as in training; with `split_special_tokens=False` a call makes it the mask.
    """
    file = tokenizer_file(folder)
    tokenizer = Tokenizer.from_buffer(file_bytes(file))
    read_special_as_text(tokenizer)
    own = [tokenizer.normalizer] if tokenizer.normalizer is not None else []
    tokenizer.normalizer = normalizers.Sequence([*_preparation(normalise), *own])
    special = special_tokens(tokenizer, file)
    bos, eos = special.bos, special.eos
    frame = [(token, tokenizer.token_to_id(token)) for token in (bos, eos)]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=[bos, "$A", eos], pair=[bos, "$A", eos, eos, "$B", eos], special_tokens=frame
    )
    names = {"bos": bos, "eos": eos, "cls": bos, "sep": eos, "pad": special.pad, "mask": special.mask}
    if unknown := [token for token in UNKNOWN if tokenizer.token_to_id(token) is not None]:
        names["unk"] = unknown[0]
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=max_tokens,
        model_input_names=["input_ids", "attention_mask"],
        padding_side="right",
        split_special_tokens=True,
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
