from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers.utils import logging

from cclm.cli.__main__ import main
from cclm.data.sentencepiece import SENTENCEPIECE_NAME
from cclm.data.tokens import load_tokenizer
from cclm.errors import CheckpointError
from cclm.hub.prune_vocabulary import REPORT_NAME, _write_papers, prune_vocabulary
from cclm.model.modeling_cclm import CCLMModel
from cclm.model.options import ModelOptions
from cclm.shardfile.reader import texts_of_sets
from tests.left_to_long import left_to_slow
from tests.tiny_families import TINY_BEIT, TINY_SWIN, wavy_model
from tests.unit.data.data_sets import write_images, write_pairs, write_region_images
from tests.unit.data.test_tokenizer_file import sentencepiece_folder
from tests.unit.data.test_vocabulary import CORPUS, MINE, trained
from tests.unit.model.hf_texts import CONFIGS, text_options
from tests.unit.model.tiny import tiny_config


def folder_of(options: ModelOptions, folder: Path, rows_more: int = 0) -> CCLMModel:
    """A model with its tokenizer, as a folder."""
    tokenizer = trained("Unigram")
    vocab_size = tokenizer.get_vocab_size() + rows_more
    model = wavy_model(replace(options, text=replace(options.text, vocab_size=vocab_size)))
    model.save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    decoder = {
        str(number): {"content": token.content} for number, token in tokenizer.get_added_tokens_decoder().items()
    }
    settings = {"added_tokens_decoder": decoder, "model_max_length": 20}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "parity.json").write_text("{}")
    (folder / "modules.json").write_text("[]")
    return model


IMAGES = {"image_size": 32, "stem_channels": [4, 8, 8]}
KINDS = {
    "tied": TINY_SWIN,
    "untied": TINY_BEIT,
    "no_head": replace(TINY_BEIT, masked_lm_head=False),
    "answers": replace(TINY_SWIN, masked_lm_head=False, answer_decoder=True),
    **{
        name: tiny_config(width=32, vision=IMAGES, text=text_options(name)).options()
        for name in ("modernbert", "mdeberta")
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", list(KINDS))
def test_the_pruned_model_computes_the_same(tmp_path: Path, kind: str) -> None:
    before = folder_of(KINDS[kind], tmp_path / "before", rows_more=3)
    pruned = prune_vocabulary(tmp_path / "before", lambda: MINE, tmp_path / "after")
    after = CCLMModel.from_pretrained(tmp_path / "after").eval()
    assert after.config.text["vocab_size"] == pruned.pieces_after < pruned.pieces_before
    assert pruned.parameters_after == sum(value.numel() for value in after.parameters())
    assert (pruned.texts, pruned.left_behind) == (len(MINE), ["parity.json"])
    assert (tmp_path / "after/modules.json").read_text() == "[]", "sentence-transformers reads it as before"
    assert pruned.max_abs_states <= 1e-5
    old, new = (load_tokenizer(tmp_path / name).encode(MINE, 20) for name in ("before", "after"))
    for first, second in zip(old, new, strict=True):
        ids = torch.tensor([first]), torch.tensor([second])
        images = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            states = [model.encode_texts(row, row >= 0) for model, row in zip((before, after), ids, strict=True)]
            torch.testing.assert_close(states[0], states[1], atol=1e-5, rtol=0)
            if before.matching_head is not None:
                expected, found = before.score(images, ids[0]), after.score(images, ids[1])
                torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert after.all_tied_weights_keys.keys() == before.all_tied_weights_keys.keys()
    assert json.loads((tmp_path / "after" / REPORT_NAME).read_text())["pieces_after"] == pruned.pieces_after
    assert not list(tmp_path.glob(".export-*"))


@pytest.mark.slow
def test_published_forms_may_be_left_out(tmp_path: Path) -> None:
    folder_of(KINDS["tied"], tmp_path / "before")
    texts = [text.upper() for text in MINE]
    both = prune_vocabulary(tmp_path / "before", lambda: texts, tmp_path / "both")
    one = prune_vocabulary(tmp_path / "before", lambda: texts, tmp_path / "one", as_written=True)
    assert one.texts == both.texts == len(texts)
    assert one.pieces_after < both.pieces_after


def test_every_table_is_cut(tmp_path: Path) -> None:
    folder_of(KINDS["untied"], tmp_path / "before")
    pruned = prune_vocabulary(tmp_path / "before", lambda: MINE, tmp_path / "after")
    assert set(pruned.tables) == {
        "text_encoder.embeddings.words.weight",
        "masked_lm_decoder.weight",
        "masked_lm_decoder.bias",
    }
    assert (tmp_path / "after" / "modeling_cclm.py").is_file(), "the modelling code goes along"
    again = transformers.AutoTokenizer.from_pretrained(tmp_path / "after", tokenizer_class="PreTrainedTokenizerFast")
    assert again.convert_tokens_to_ids("<mask>") == pruned.pieces_after - 1


@pytest.mark.parametrize("kind", [transformers.XLMRobertaForMaskedLM, transformers.XLMRobertaModel])
def test_an_xlm_r_with_its_own_tokenizer(
    tmp_path: Path,
    kind: Callable[..., torch.nn.Module],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(logging._get_library_root_logger(), "propagate", True)
    pieces = [(piece, score) for piece, score in json.loads(trained("Unigram").to_str())["model"]["vocab"]]
    tokenizer = transformers.XLMRobertaTokenizer(vocab=[*pieces, ("<mask>", 0.0)])
    tokenizer.save_pretrained(tmp_path / "before")
    config = transformers.XLMRobertaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=40,
    )
    kind(config).save_pretrained(tmp_path / "before")  # type: ignore[operator]
    pruned = prune_vocabulary(tmp_path / "before", lambda: MINE, tmp_path / "after")
    assert "newly initialized" not in caplog.text and logging.get_verbosity() == logging.WARNING
    assert pruned.max_abs_states <= 1e-5
    old, new = (transformers.AutoTokenizer.from_pretrained(tmp_path / name) for name in ("before", "after"))
    for text in MINE:
        assert new.tokenize(text) == old.tokenize(text)
    assert (new.pad_token_id, new.mask_token_id) == (1, pruned.pieces_after - 1)
    words = load_tokenizer(tmp_path / "after")
    assert (words.vocab_size, words.bos_id, words.pad_id, words.eos_id) == (pruned.pieces_after, 0, 1, 2)
    assert words.mask_id == pruned.pieces_after - 1


def bert_tokenizer() -> Tokenizer:
    """WordPiece, with BERT's special tokens."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.train_from_iterator(CORPUS * 20, trainers.WordPieceTrainer(vocab_size=90, special_tokens=special))
    return tokenizer


HEADS = ["bert", "modernbert", "eurobert", "mdeberta"]


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("has_head", left_to_slow([True, False], True))
def test_other_text_models_with_a_tokenizer_of_words(tmp_path: Path, name: str, has_head: bool) -> None:
    tokenizer, config = bert_tokenizer(), copy.deepcopy(CONFIGS[name])
    config.vocab_size = tokenizer.get_vocab_size() + 2
    auto = transformers.AutoModelForMaskedLM if has_head else transformers.AutoModel
    auto.from_config(config).save_pretrained(tmp_path / "before")
    tokenizer.save(str(tmp_path / "before" / "tokenizer.json"))
    pruned = prune_vocabulary(tmp_path / "before", lambda: MINE, tmp_path / "after")
    assert pruned.max_abs_states <= 1e-5 and pruned.max_abs_logits <= 1e-4
    assert pruned.pieces_after < pruned.pieces_before
    assert len(pruned.tables) > (1 if has_head and name != "eurobert" else 0)
    auto.from_pretrained(tmp_path / "after")
    old, new = (load_tokenizer(tmp_path / place) for place in ("before", "after"))
    assert (new.bos_id, new.eos_id, new.pad_id, new.mask_id) == (2, 3, 0, 4)
    assert [old.decode(ids) for ids in old.encode(MINE, 20)] == [new.decode(ids) for ids in new.encode(MINE, 20)]


@pytest.mark.parametrize("ours", [True, False])
def test_ids_of_the_configuration_are_renumbered_once(tmp_path: Path, ours: bool) -> None:
    """As in CamemBERT, whose ids 5 and 6 begin and end a text: 6 becomes 5, which must not become 4."""
    ids = {"bos_token_id": 5, "eos_token_id": 6, "pad_token_id": 1}
    config = {"model_type": "cclm", "text": dict(ids)} if ours else {"model_type": "camembert", **ids}
    (tmp_path / "before").mkdir()
    (tmp_path / "after").mkdir()
    (tmp_path / "before" / "config.json").write_text(json.dumps(config))
    tokenizer = trained("Unigram")
    keep = [number for number in range(tokenizer.get_vocab_size()) if number != 4]
    _write_papers(tmp_path / "before", tmp_path / "after", json.loads(tokenizer.to_str()), keep)
    written = json.loads((tmp_path / "after" / "config.json").read_text())
    written = written["text"] if ours else written
    assert {name: written[name] for name in ids} == {"bos_token_id": 4, "eos_token_id": 5, "pad_token_id": 1}
    assert written["vocab_size"] == len(keep)


def test_the_command_counts_shards_and_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder_of(KINDS["tied"], tmp_path / "before")
    write_images(tmp_path / "images", 5)
    (tmp_path / "lines.txt").write_text("\n".join(MINE))
    arguments = ["prune-vocabulary", str(tmp_path / "before"), "--to", str(tmp_path / "after")]
    assert main(arguments) == 2
    assert "expected --shards or --texts, got neither" in capsys.readouterr().err
    corpus = ["--shards", str(tmp_path / "images"), "--texts", str(tmp_path / "lines.txt")]
    assert main([*arguments, *corpus]) == 0
    said = capsys.readouterr().out
    assert f"{len(MINE) + 15} texts use " in said
    weights, beside = (tmp_path / "after" / name for name in ("model.safetensors", "config.json"))
    assert weights.stat().st_mode == beside.stat().st_mode, "who may read it says the umask"
    assert "states that differ by" in said and "parity.json" in said
    assert main([*arguments, *corpus]) == 2
    assert "expected a new folder, got one that exists" in capsys.readouterr().err
    assert main([*arguments[:3], str(tmp_path / "other"), "--texts", str(tmp_path / "none.txt")]) == 2


def test_what_cannot_be_pruned_is_refused(tmp_path: Path) -> None:
    folder_of(KINDS["tied"], tmp_path / "before")
    with pytest.raises(CheckpointError, match="expected a corpus with texts, got no piece at all"):
        prune_vocabulary(tmp_path / "before", list, tmp_path / "after")
    (tmp_path / "before" / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"expected a folder with tokenizer.json, got none"):
        prune_vocabulary(tmp_path / "before", lambda: MINE, tmp_path / "after")
    model = folder_of(KINDS["tied"], tmp_path / "small")
    small = replace(model.config.options(), text=replace(model.config.options().text, vocab_size=5))
    wavy_model(small).save_pretrained(tmp_path / "small")
    with pytest.raises(CheckpointError, match="expected tables with one row for each of the tokenizer's pieces"):
        prune_vocabulary(tmp_path / "small", lambda: CORPUS, tmp_path / "after")
    assert not (tmp_path / "after").exists()


def test_an_xlm_roberta_whose_tokenizer_is_a_sentencepiece_file(tmp_path: Path) -> None:
    before = sentencepiece_folder(tmp_path / "before")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    config = transformers.XLMRobertaConfig(**sizes, vocab_size=82, max_position_embeddings=40, type_vocab_size=1)
    transformers.XLMRobertaForMaskedLM(config).save_pretrained(before)
    texts = ["a red car", "赤い車　と 犬", "ｒｅｄ ﬁsh ☃"]
    pruned = prune_vocabulary(before, lambda: texts, tmp_path / "after")
    assert pruned.pieces_after < pruned.pieces_before == 82
    assert pruned.left_behind == [SENTENCEPIECE_NAME]
    old, new = (load_tokenizer(tmp_path / name) for name in ("before", "after"))
    for first, second in zip(old.encode(texts, 40), new.encode(texts, 40), strict=True):
        assert old.decode(first) == new.decode(second)
        assert len(first) == len(second)


def test_texts_of_every_kind_of_set(tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", 3)
    regions = write_region_images(tmp_path / "regions", 3)
    pairs = write_pairs(tmp_path / "pairs", 2)
    assert len(list(texts_of_sets([images]))) == 9
    assert len(list(texts_of_sets([regions]))) > 6
    assert len(list(texts_of_sets([images, pairs]))) > 9
