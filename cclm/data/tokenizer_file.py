"""The tokenizer.json of a source, wherever it lies: a folder, or a model on the Hugging Face hub by name.

FOLDER/tokenizer.json                                          ─┐
FOLDER/sentencepiece.bpe.model of XLM-RoBERTa (no newer form)  ─┼─▶ bytes of a tokenizer.json
FacebookAI/xlm-roberta-base ─ local cache or network ─ FOLDER  ─┘
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from cclm.data.sentencepiece import SENTENCEPIECE_NAME, tokenizer_of_sentencepiece
from cclm.errors import ConfigError

TOKENIZER_NAME = "tokenizer.json"
XLM_ROBERTA = "xlm-roberta"
"""`model_type` whose SentencePiece file is understood; CamemBERT's has the same name and other ids."""
_LONGEST_NAME = 96
"""Of a model on the hub, in characters."""
_HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")


def tokenizer_bytes(source: Path | str) -> bytes:
    """The content of a source's tokenizer.json (ConfigError: there is none)."""
    path = tokenizer_file(source)
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
