"""The tokenizer.json of a source, wherever it lies: a folder, or a model on the Hugging Face hub by name.

FOLDER/tokenizer.json                                          ─┐
FOLDER/sentencepiece.bpe.model of XLM-RoBERTa (no newer form)  ─┼─▶ bytes of a tokenizer.json
FacebookAI/xlm-roberta-base ─ local cache or network ─ FOLDER  ─┘
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from cclm.errors import ConfigError

TOKENIZER_NAME = "tokenizer.json"
SENTENCEPIECE_NAME = "sentencepiece.bpe.model"
FIRST_PIECES = ["<unk>", "<s>", "</s>"]
"""What stands first in the file; XLM-RoBERTa's ids begin with four tokens of its own instead."""
SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")
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


def tokenizer_of_sentencepiece(path: Path) -> Tokenizer:
    """The tokenizer that XLM-RoBERTa makes of its SentencePiece file.

    ids: `<s> <pad> </s> <unk>`, the file's fourth piece and on, `<mask>`.

    Raises:
        ConfigError: the file is broken, or of another kind of tokenizer.
    """
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # comes with tensorboard
    from transformers.utils.sentencepiece_model_pb2_new import (
        ModelProto,  # sentencepiece's own wants the newest protobuf
    )

    try:
        model = ModelProto.FromString(path.read_bytes())
        pieces = [(piece.piece, piece.score) for piece in model.pieces]
    except (DecodeError, UnicodeDecodeError) as error:
        raise _sentencepiece_error(path, "a whole SentencePiece file", str(error)) from error
    is_text = all(isinstance(text, str) for text, _ in pieces)  # other bytes come as they are, or as an error
    if not (is_text and model.HasField("trainer_spec") and model.HasField("normalizer_spec")):
        got = "one that ends before its settings" if is_text else "pieces that are not UTF-8"
        raise _sentencepiece_error(path, "a whole SentencePiece file", got)
    kind, first = model.trainer_spec.model_type, [text for text, _ in pieces[:3]]
    kinds = {piece.type for piece in model.pieces[3:]}
    if kind != model.trainer_spec.UNIGRAM or first != FIRST_PIECES or kinds != {model.SentencePiece.NORMAL}:
        expected = f"a unigram model that begins with {FIRST_PIECES}, all other pieces normal ones"
        got = f"kind {kind}, first pieces {first}, kinds of the others {kinds}"
        raise _sentencepiece_error(path, expected, got)
    return _build(pieces[3:], model.normalizer_spec.precompiled_charsmap)


def _build(pieces: list[tuple[str, float]], table: bytes) -> Tokenizer:
    """XLM-RoBERTa's tokenizer.json."""
    vocabulary = [*((token, 0.0) for token in SPECIAL), *pieces, ("<mask>", 0.0)]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=SPECIAL.index("<unk>")))
    if table:
        tokenizer.normalizer = normalizers.Sequence(
            [normalizers.Precompiled(table), normalizers.Replace(Regex(" {2,}"), " ")]
        )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")]
    )
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    tokenizer.add_special_tokens([*SPECIAL, AddedToken("<mask>", lstrip=True, normalized=False, special=True)])
    return tokenizer


def _sentencepiece_error(path: Path, expected: str, got: str) -> ConfigError:
    do = "Give XLM-RoBERTa's own file, or a folder with tokenizer.json (transformers' save_pretrained writes one)."
    return ConfigError(where=str(path), expected=expected, got=got, do=do)
