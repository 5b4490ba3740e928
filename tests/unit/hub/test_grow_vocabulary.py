from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
import transformers

from cclm.cli.__main__ import main
from cclm.data.grown_vocabulary import NewPiece, checked_content, choose_pieces
from cclm.data.tokens import load_tokenizer
from cclm.errors import CheckpointError, ConfigError
from cclm.hub.grow_vocabulary import REPORT_NAME, grow_vocabulary, grown_table
from cclm.hub.prune_vocabulary import tokenizer_of
from cclm.model.modeling_cclm import CCLMModel
from cclm.pretrained.source_files import read_folder
from tests.unit.data.test_vocabulary import CORPUS, trained
from tests.unit.hub.test_prune_vocabulary import KINDS, folder_of

NEW = [
    "wolken am himmel",
    "wolken und regen",
    "ein himmel ohne regen",
    "красная машина",
    "красная собака",
    "собака и машина",
]
"""In letters that the tokenizer half knows, and in a script that it lacks."""


@pytest.mark.slow
@pytest.mark.parametrize("kind", list(KINDS))
def test_old_texts_stay_and_new_ones_get_shorter(tmp_path: Path, kind: str) -> None:
    before = folder_of(KINDS[kind], tmp_path / "before", rows_more=3)
    grown = grow_vocabulary(tmp_path / "before", lambda: NEW, tmp_path / "after", 40)
    after = CCLMModel.from_pretrained(tmp_path / "after").eval()
    added = grown.pieces_after - grown.pieces_before
    assert 0 < added <= 40 and after.config.text["vocab_size"] == grown.pieces_after
    assert grown.tokens_after < grown.tokens_before and 0 == grown.unknown_after < grown.unknown_before
    assert 0 < grown.rows_drawn < added
    assert (grown.texts, grown.left_behind) == (len(NEW), ["parity.json"])
    assert json.loads((tmp_path / "after" / REPORT_NAME).read_text())["rows_drawn"] == grown.rows_drawn
    old, new = (load_tokenizer(tmp_path / name) for name in ("before", "after"))
    assert new.encode(CORPUS, 20) == old.encode(CORPUS, 20)
    assert (new.mask_id, new.pad_id, new.vocab_size) == (old.mask_id, old.pad_id, grown.pieces_after)
    ids = torch.tensor(old.encode([CORPUS[0]], 20))
    with torch.no_grad():
        states = [model.encode_texts(ids, ids >= 0)[0] for model in (before, after)]
    torch.testing.assert_close(*states, atol=1e-5, rtol=0)


def test_rows_are_means_of_the_old_parts(tmp_path: Path) -> None:
    before = folder_of(KINDS["untied"], tmp_path / "before")
    grown = grow_vocabulary(tmp_path / "before", lambda: NEW, tmp_path / "after", 40)
    after = CCLMModel.from_pretrained(tmp_path / "after")
    content = checked_content(json.loads((tmp_path / "before/tokenizer.json").read_text()))
    pieces = choose_pieces(tokenizer_of(content), content, [text for text in NEW for _ in range(2)], 40)
    assert len(pieces) == grown.pieces_after - grown.pieces_before
    for name in grown.tables:
        old, new = (model.state_dict()[name] for model in (before, after))
        for number, piece in enumerate(pieces, grown.pieces_before):
            if piece.parts:
                torch.testing.assert_close(new[number], old[list(piece.parts)].mean(0))
        drawn = torch.stack([new[number] for number, piece in enumerate(pieces, len(old)) if not piece.parts])
        assert len(drawn.unique(dim=0)) == len(drawn) == grown.rows_drawn
    words = after.state_dict()["text_encoder.embeddings.words.weight"]
    assert len(words.unique(dim=0)) == len(words), "no two pieces are one for the model"


@pytest.mark.slow
def test_growing_is_repeatable_and_takes_the_best_first(tmp_path: Path) -> None:
    folder_of(KINDS["tied"], tmp_path / "before")
    for name, most in (("first", 5), ("again", 5), ("more", 40)):
        grow_vocabulary(tmp_path / "before", lambda: NEW, tmp_path / name, most)
    first, again, more = (
        [piece for piece, _ in json.loads((tmp_path / name / "tokenizer.json").read_text())["model"]["vocab"]]
        for name in ("first", "again", "more")
    )
    assert (tmp_path / "first/model.safetensors").read_bytes() == (tmp_path / "again/model.safetensors").read_bytes()
    assert first == again and len(first) < len(more)


def test_an_xlm_r(tmp_path: Path) -> None:
    pieces = [(piece, score) for piece, score in json.loads(trained("Unigram").to_str())["model"]["vocab"]]
    tokenizer = transformers.XLMRobertaTokenizer(vocab=[*pieces, ("<mask>", 0.0)])
    tokenizer.save_pretrained(tmp_path / "before")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    config = transformers.XLMRobertaConfig(**sizes, vocab_size=len(tokenizer), max_position_embeddings=40)
    transformers.XLMRobertaForMaskedLM(config).save_pretrained(tmp_path / "before")
    grown = grow_vocabulary(tmp_path / "before", lambda: NEW, tmp_path / "after", 30)
    new = transformers.AutoTokenizer.from_pretrained(tmp_path / "after")
    assert len(new) == grown.pieces_after and new.unk_token_id not in new(NEW[-1])["input_ids"]
    assert new.decode(new(NEW[-1])["input_ids"], skip_special_tokens=True) == NEW[-1]


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder_of(KINDS["tied"], tmp_path / "before")
    (tmp_path / "lines.txt").write_text("\n".join(NEW))
    arguments = ["grow-vocabulary", str(tmp_path / "before"), "--to", str(tmp_path / "after")]
    assert main([*arguments, "--pieces", "9"]) == 2
    assert "expected --shards or --texts, got neither" in capsys.readouterr().err
    arguments += ["--texts", str(tmp_path / "lines.txt")]
    assert main([*arguments, "--pieces", "9"]) == 0
    assert "9 pieces added to " in capsys.readouterr().out
    weights, beside = (tmp_path / "after" / name for name in ("model.safetensors", "config.json"))
    assert weights.stat().st_mode == beside.stat().st_mode, "who may read it says the umask"
    assert main([*arguments, "--pieces", "9"]) == 2
    assert "expected a new folder, got one that exists" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(tmp_path: Path, dtype: torch.dtype) -> None:
    folder_of(KINDS["untied"], tmp_path / "before").to(dtype).save_pretrained(tmp_path / "before")
    grown = grow_vocabulary(tmp_path / "before", lambda: NEW, tmp_path / "after", 40)
    assert grown.max_abs_states == 0
    assert {value.dtype for value in read_folder(tmp_path / "after").values()} == {dtype}


def test_a_wrong_row_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder_of(KINDS["untied"], tmp_path / "before")
    for place, wrong in ((0, "old"), (-1, "new")):

        def changed(table: torch.Tensor, num_old: int, new: Sequence[NewPiece], place: int = place) -> torch.Tensor:
            known = [number for number, piece in enumerate(new, num_old) if piece.parts]
            grown = grown_table(table, num_old, new)
            grown[known[0] if place else 0] += 1
            return grown

        monkeypatch.setattr("cclm.hub.grow_vocabulary.grown_table", changed)
        with pytest.raises(CheckpointError) as error:
            grow_vocabulary(tmp_path / "before", lambda: NEW, tmp_path / wrong, 40)
        assert "differences of" in str(error.value) and not (tmp_path / wrong).exists()


def test_tokenizers_of_other_shapes(tmp_path: Path) -> None:
    """Tabs and texts without spaces are words, too; a file of an old form, and one without an unknown piece."""
    folder_of(KINDS["no_head"], tmp_path / "before")
    content = json.loads((tmp_path / "before/tokenizer.json").read_text())
    assert content["model"].pop("type") == "Unigram"
    content["pre_tokenizer"]["split"] = False
    (tmp_path / "before/tokenizer.json").write_text(json.dumps(content))
    texts = [text.replace(" ", "\t") for text in NEW]
    grown = grow_vocabulary(tmp_path / "before", lambda: texts + NEW, tmp_path / "after", 40)
    assert grown.tokens_after < grown.tokens_before
    with pytest.raises(ConfigError) as error:
        checked_content({"model": {"type": "Unigram", "unk_id": None, "vocab": []}, "added_tokens": []})
    assert "unknown characters" in str(error.value)


def test_what_cannot_grow_is_refused(tmp_path: Path) -> None:
    folder_of(KINDS["tied"], tmp_path / "before")
    with pytest.raises(CheckpointError) as nothing:
        grow_vocabulary(tmp_path / "before", list, tmp_path / "after", 9)
    assert "none" in str(nothing.value)
    trained("BPE").save(str(tmp_path / "before/tokenizer.json"))
    with pytest.raises(ConfigError) as other:
        grow_vocabulary(tmp_path / "before", lambda: NEW, tmp_path / "after", 9)
    assert "Unigram" in str(other.value)
    assert not (tmp_path / "after").exists()
