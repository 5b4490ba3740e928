"""The tokenizer.json of a source, wherever it lies: a folder, or a model on the Hugging Face hub by name.

FOLDER/tokenizer.json                                          ─┐
FOLDER/sentencepiece.bpe.model of XLM-RoBERTa (no newer form)  ─┼─▶ bytes of a tokenizer.json
FacebookAI/xlm-roberta-base ─ local cache or network ─ FOLDER  ─┘
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cclm.data.sentencepiece import SENTENCEPIECE_NAME, tokenizer_of_sentencepiece
from cclm.errors import ConfigError

TOKENIZER_NAME, SETTINGS_NAME = "tokenizer.json", "tokenizer_config.json"
XLM_ROBERTA = "xlm-roberta"
"""`model_type` whose SentencePiece file is understood; CamemBERT's has the same name and other ids."""
_LONGEST_NAME = 96
"""Of a model on the hub, in characters."""
_HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")


def tokenizer_bytes(source: Path | str) -> bytes:
    """The content of a source's tokenizer.json (ConfigError: there is none)."""
    return file_bytes(tokenizer_file(source))


def file_bytes(path: Path) -> bytes:
    """The tokenizer.json that a file is, or means."""
    return path.read_bytes() if path.name == TOKENIZER_NAME else tokenizer_of_sentencepiece(path).to_str().encode()


def tokenizer_file(source: Path | str) -> Path:
    """The file that a source's tokenizer is read from (ConfigError: there is none)."""
    folder = tokenizer_folder(source)
    path, old = folder / TOKENIZER_NAME, folder / SENTENCEPIECE_NAME
    if path.is_file():
        return path
    if not old.is_file():
        raise ConfigError(
            expected="a tokenizer folder with tokenizer.json",
            got=f"no {path}",
            do="Make the tokenizer first, or correct `tokenizer` in the config.",
        )
    _check_kinds(folder)
    return old


def tokenizer_folder(source: Path | str) -> Path:
    """The folder itself, or where the files of a model on the hub lie (ConfigError: neither)."""
    path, name = Path(source), str(source)
    if not is_hub_name(source):
        return path
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=["*.json", SENTENCEPIECE_NAME]))
    except (OSError, ValueError, RuntimeError) as error:
        raise ConfigError(
            where=name,
            expected="a tokenizer folder with tokenizer.json, or the name of a model on the Hugging Face hub",
            got=f"no such folder, and from the hub: {' '.join(str(error).split())[:200]}",
            do="Make the tokenizer first, or correct the path or name; without network give a folder.",
        ) from error


@dataclass(frozen=True)
class SpecialTokens:
    """What begins and ends a text, fills it up, and hides a word."""

    bos: str
    eos: str
    pad: str
    mask: str


OURS = SpecialTokens("<s>", "</s>", "<pad>", "<mask>")
"""XLM-R's, which tokenizers of this project have, too."""
FRAMES = (SpecialTokens("[CLS]", "[SEP]", "[PAD]", "[MASK]"), OURS)
"""What is looked for in a vocabulary where no file says more: BERT's, and ours."""


def special_tokens(tokenizer: Any, file: Path | None = None) -> SpecialTokens:
    """Say which tokens of a `tokenizers.Tokenizer` frame a text, by tokenizer_config.json beside its file if it tells.

    Raises:
        ConfigError: the vocabulary has not all of them.
    """
    told = _told_tokens(file.parent / SETTINGS_NAME) if file is not None else None
    frames = (*([told] if told is not None else []), *FRAMES)
    missing = [[one for one in vars(frame).values() if tokenizer.token_to_id(one) is None] for frame in frames]
    if all(missing):
        raise ConfigError(
            where="" if file is None else str(file.parent),
            expected="a tokenizer with special tokens: <s>, <pad>, </s> and <mask>, or [CLS], [PAD], [SEP] and [MASK], "
            f"or those that its {SETTINGS_NAME} names",
            got=f"one without {', '.join(missing[-1])}",
            do="Train the tokenizer with these special tokens, or name another tokenizer folder.",
        )
    return next(frame for frame, lacks in zip(frames, missing, strict=True) if not lacks)


def _told_tokens(path: Path) -> SpecialTokens | None:
    """The tokens that a tokenizer_config.json names; None if it does not name all."""
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        named = {name: told.get(f"{name}_token") for name in ("cls", "bos", "sep", "eos", "pad", "mask")}
    except (OSError, ValueError, AttributeError):
        return None
    text: dict[str, Any] = {name: one["content"] if isinstance(one, dict) else one for name, one in named.items()}
    found = (text["cls"] or text["bos"], text["sep"] or text["eos"], text["pad"], text["mask"])
    return SpecialTokens(*found) if all(found) else None


def is_hub_name(source: Path | str) -> bool:
    """Whether a source is looked for on the hub: it is no folder here, nor one that could be made."""
    path = Path(source)
    if len(str(source)) > _LONGEST_NAME or _HUB_NAME.fullmatch(str(source)) is None:
        return False
    return not (path.is_dir() or (path.parent != Path() and path.parent.is_dir()))


def _check_kinds(folder: Path) -> None:
    """Only a config.json says whose ids belong to a SentencePiece file."""
    try:
        kind = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
    except (OSError, ValueError, AttributeError):
        kind = None
    if kind != XLM_ROBERTA:
        raise ConfigError(
            where=str(folder),
            expected=f'tokenizer.json, or {SENTENCEPIECE_NAME} beside a config.json of model_type "{XLM_ROBERTA}"',
            got=f"{SENTENCEPIECE_NAME} and model_type {kind!r}",
            do="Put the model's config.json there, or write tokenizer.json with transformers' save_pretrained.",
        )
