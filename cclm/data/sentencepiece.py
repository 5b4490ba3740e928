"""XLM-RoBERTa's `sentencepiece.bpe.model` as a tokenizer.json: for folders that hold nothing newer.

The file is one protobuf message; the few fields that are needed are read here, without sentencepiece or protobuf:

    1  a piece: 1 text, 2 score, 3 kind      2  how it was trained: 3 kind of model
                                             3  normaliser: 2 compiled table of characters
    ids:  <s> <pad> </s> <unk>  the file's fourth piece and on …  <mask>
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from cclm.errors import ConfigError

SENTENCEPIECE_NAME = "sentencepiece.bpe.model"
FIRST_PIECES = ["<unk>", "<s>", "</s>"]
"""What stands first in the file; XLM-RoBERTa's ids begin with four tokens of its own instead."""
SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")
PIECE, TRAINER, NORMALISER = 1, 2, 3
"""Fields of the file."""
UNIGRAM, NORMAL = 1, 1
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
"""Protobuf's wire types."""
Value = int | bytes


def tokenizer_of_sentencepiece(path: Path) -> Tokenizer:
    """The tokenizer that XLM-RoBERTa makes of its SentencePiece file.

    Raises:
        ConfigError: the file is broken, or of another kind of tokenizer.
    """
    pieces: list[tuple[str, float]] = []
    kinds: list[int] = []
    specs: dict[int, Value] = {}
    try:
        for field, value in _fields(path.read_bytes()):
            if field == PIECE:
                piece, score, kind = _piece(value)
                pieces.append((piece, score))
                kinds.append(kind)
            else:
                specs[field] = value
        model = int(dict(_fields(specs[TRAINER])).get(3, UNIGRAM))
        table = bytes(dict(_fields(specs[NORMALISER])).get(2, b""))  # both stand behind the pieces: none is cut off
    except (LookupError, struct.error, TypeError, ValueError) as error:
        raise _error(path, "a whole SentencePiece file", f"{type(error).__name__}: {error}") from error
    if model != UNIGRAM or [piece for piece, _ in pieces[:3]] != FIRST_PIECES or set(kinds[3:]) != {NORMAL}:
        got = f"kind {model}, first pieces {[piece for piece, _ in pieces[:3]]}, kinds of the others {set(kinds[3:])}"
        raise _error(path, f"a unigram model that begins with {FIRST_PIECES}, all other pieces normal ones", got)
    return xlm_roberta_tokenizer(pieces[3:], [normalizers.Precompiled(table)] if table else [])


def xlm_roberta_tokenizer(pieces: list[tuple[str, float]], normaliser: list[normalizers.Normalizer]) -> Tokenizer:
    """XLM-RoBERTa's tokenizer.json, of the pieces between its special ones; the normaliser comes before all else."""
    vocabulary = [*((token, 0.0) for token in SPECIAL), *pieces, ("<mask>", 0.0)]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=SPECIAL.index("<unk>")))
    if normaliser:
        tokenizer.normalizer = normalizers.Sequence([*normaliser, normalizers.Replace(Regex(" {2,}"), " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")]
    )
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    tokenizer.add_special_tokens([*SPECIAL, AddedToken("<mask>", lstrip=True, normalized=False, special=True)])
    return tokenizer


def _piece(value: Value) -> tuple[str, float, int]:
    found = dict(_fields(value))
    score = struct.unpack("<f", found[2])[0] if 2 in found else 0.0  # type: ignore[arg-type]
    return bytes(found[1]).decode("utf-8"), score, int(found.get(3, NORMAL))


def _fields(value: Value) -> Iterator[tuple[int, Value]]:
    """Number and value of each field of a message; of 4 and 8 bytes as they lie there.

    Raises:
        ValueError: a wire type that protobuf does not have, or a field that ends behind the message.
    """
    if not isinstance(value, bytes):
        raise TypeError("a number where a message was expected")
    place = 0
    while place < len(value):
        tag, place = _varint(value, place)
        kind = tag & 7
        if kind == VARINT:
            number, place = _varint(value, place)
            yield tag >> 3, number
            continue
        if kind == BYTES:
            size, place = _varint(value, place)
        elif kind in (FIXED32, FIXED64):
            size = 4 if kind == FIXED32 else 8
        else:
            raise ValueError(f"wire type {kind}")
        if place + size > len(value):
            raise ValueError(f"a field of {size} bytes in a message that ends before it")
        yield tag >> 3, value[place : place + size]
        place += size


def _varint(value: bytes, place: int) -> tuple[int, int]:
    """A number of seven bits a byte, the lowest first, and the place behind it."""
    number = shift = 0
    while True:
        byte = value[place]
        number |= (byte & 0x7F) << shift
        place, shift = place + 1, shift + 7
        if byte < 0x80:
            return number, place


def _error(path: Path, expected: str, got: str) -> ConfigError:
    do = "Give XLM-RoBERTa's own file, or a folder with tokenizer.json (transformers' save_pretrained writes one)."
    return ConfigError(where=str(path), expected=expected, got=got, do=do)
