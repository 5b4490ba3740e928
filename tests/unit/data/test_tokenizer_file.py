"""Where a tokenizer may come from: tokenizer.json, XLM-RoBERTa's SentencePiece file, a name on the hub.

`sentencepiece/tiny.model` was trained by the sentencepiece package (0.2.3; unigram, 80 pieces, a table of full-width
letters, the ideographic space and a ligature); `pieces.json` holds what that package makes of some texts.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models

from cclm.data.sentencepiece import SENTENCEPIECE_NAME, SPECIAL, tokenizer_of_sentencepiece
from cclm.data.tokenizer_file import tokenizer_bytes, tokenizer_file, tokenizer_folder
from cclm.data.tokens import load_tokenizer
from cclm.errors import ConfigError
from tests.unit.data.data_sets import make_tokenizer

HERE = Path(__file__).parent / "sentencepiece"
RECORDED = json.loads((HERE / "pieces.json").read_text(encoding="utf-8"))
IDS = {0: 3, 1: 0, 2: 2}
"""<unk>, <s> and </s> of the file in XLM-RoBERTa; all other ids are one higher."""


def sentencepiece_folder(folder: Path) -> Path:
    """Make what a Hugging Face folder of XLM-RoBERTa's first years holds, without weights."""
    folder.mkdir(exist_ok=True)
    shutil.copy(HERE / "tiny.model", folder / SENTENCEPIECE_NAME)
    (folder / "config.json").write_text('{"model_type": "xlm-roberta"}')
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return sentencepiece_folder(tmp_path / "xlm-roberta")


@pytest.mark.parametrize("recorded", RECORDED, ids=[row["text"] for row in RECORDED])
def test_pieces_are_those_of_sentencepiece(recorded: dict[str, list[int]], folder: Path) -> None:
    tokenizer = Tokenizer.from_buffer(tokenizer_bytes(folder))
    found = tokenizer.encode(recorded["text"], add_special_tokens=False)
    assert found.tokens == recorded["pieces"]
    assert found.ids == [IDS.get(number, number + 1) for number in recorded["ids"]]


def test_special_tokens_are_xlm_robertas(folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    assert (tokenizer.bos_id, tokenizer.pad_id, tokenizer.eos_id) == (0, 1, 2)
    assert tokenizer.mask_id == tokenizer.vocab_size - 1 == 80 - 3 + len(SPECIAL)
    (ids,) = tokenizer.encode(["a red car"], 40)
    assert (ids[0], ids[-1], tokenizer.decode(ids)) == (0, 2, "a red car")


def test_a_tokenizer_json_comes_first(folder: Path) -> None:
    assert tokenizer_file(folder).name == SENTENCEPIECE_NAME
    make_tokenizer().save(str(folder / "tokenizer.json"))
    assert tokenizer_bytes(folder) == (folder / "tokenizer.json").read_bytes()


def test_a_file_of_the_same_name_with_other_ids_is_refused(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "camembert"}')
    with pytest.raises(ConfigError, match=r"beside a config.json of model_type \"xlm-roberta\", got .* 'camembert'"):
        load_tokenizer(folder)
    (folder / "config.json").unlink()
    with pytest.raises(ConfigError, match=r"model_type None. Put the model's config.json there"):
        load_tokenizer(folder)


@settings(max_examples=100, deadline=None)
@given(size=st.integers(0, 2118))
def test_a_file_that_was_cut_is_refused_or_is_the_same(size: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("cut") / SENTENCEPIECE_NAME
    path.write_bytes((HERE / "tiny.model").read_bytes()[:size])
    try:
        found = tokenizer_of_sentencepiece(path)
    except ConfigError as error:
        assert str(error).startswith(f"{path}: expected a")
    else:
        assert found.to_str() == tokenizer_of_sentencepiece(HERE / "tiny.model").to_str()


def test_other_kinds_of_models_are_refused(tmp_path: Path) -> None:
    path = tmp_path / SENTENCEPIECE_NAME
    content = (HERE / "tiny.model").read_bytes()
    path.write_bytes(content.replace(b"</s>", b"</x>", 1))
    with pytest.raises(ConfigError, match=r"a unigram model that begins with .*</x>"):
        tokenizer_of_sentencepiece(path)
    path.write_bytes(content.replace("▁".encode(), b"\xff\xfe\xfd", 1))
    with pytest.raises(ConfigError, match=r"a whole SentencePiece file"):
        tokenizer_of_sentencepiece(path)
    path.write_bytes(b"\x0f" + content)
    with pytest.raises(ConfigError, match=r"a whole SentencePiece file, got .*wire type"):
        tokenizer_of_sentencepiece(path)


def test_a_name_is_asked_for_on_the_hub(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def download(name: str, allow_patterns: list[str]) -> str:
        asked.append((name, SENTENCEPIECE_NAME in allow_patterns))
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert load_tokenizer("FacebookAI/xlm-roberta-base").vocab_size == 82
    assert asked == [("FacebookAI/xlm-roberta-base", True)]


def test_a_path_is_never_asked_for_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: pytest.fail("asked"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    for name in (str(tmp_path / "none"), "data/tokenizer", "../data/none", "./none", "a/b/c"):
        assert tokenizer_folder(name) == Path(name)
        with pytest.raises(ConfigError, match=r"a tokenizer folder with tokenizer\.json, got no .*tokenizer\.json"):
            load_tokenizer(name)


def test_a_name_that_the_hub_does_not_give(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(*_: object, **__: object) -> str:
        raise LocalEntryNotFoundError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"some/tokenizer: expected .*, got no such folder, and from the hub: no net"):
        load_tokenizer("some/tokenizer")


def words(*special: str) -> Tokenizer:
    return Tokenizer(models.WordLevel({word: number for number, word in enumerate([*special, "a"])}, unk_token="a"))


GEMMA = ("<pad>", "<eos>", "<bos>", "<mask>", "<s>", "</s>")
LLAMA = ("<|begin_of_text|>", "<|end_of_text|>", "<|pad|>", "<|mask|>")


@pytest.mark.parametrize(
    ("special", "told", "expected"),
    [
        (("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"), None, (2, 3, 0, 4)),
        (("<s>", "<pad>", "</s>", "<mask>"), {"model_max_length": 20}, (0, 2, 1, 3)),
        (GEMMA, {"bos": "<bos>", "eos": "<eos>", "pad": "<pad>", "mask": {"content": "<mask>"}}, (2, 1, 0, 3)),
        (LLAMA, dict(zip(("bos", "eos", "pad", "mask"), LLAMA, strict=True)), (0, 1, 2, 3)),
        (LLAMA, {"bos": LLAMA[0], "eos": LLAMA[1], "pad": LLAMA[1], "mask": LLAMA[3]}, (0, 1, 1, 3)),
    ],
)
def test_what_frames_a_text_is_told_or_known(
    special: tuple[str, ...], told: dict[str, Any] | None, expected: tuple[int, ...], tmp_path: Path
) -> None:
    words(*special).save(str(tmp_path / "tokenizer.json"))
    if told is not None:
        settings = {f"{name}_token": token for name, token in told.items()}
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    found = load_tokenizer(tmp_path)
    assert (found.bos_id, found.eos_id, found.pad_id, found.mask_id) == expected
    assert found.encode(["a"], 8) == [[expected[0], len(special), expected[1]]]


def test_a_tokenizer_without_them_is_refused(tmp_path: Path) -> None:
    words(*LLAMA).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ConfigError, match=r"or those that its tokenizer_config.json names, got one without <s>"):
        load_tokenizer(tmp_path)
