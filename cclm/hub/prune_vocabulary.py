"""`cclm prune-vocabulary`: keep the pieces that a corpus uses, in the tokenizer, the embeddings and the masked-LM head.

    FOLDER (an export or import of ours, or an XLM-R) + shard sets or text files
        ─▶ pieces that occur ─▶ rows of every table with a row for each piece ─▶ new folder, checked, pruning.json

Two checks, or nothing is written: every text gives the same pieces, and a fixed batch gives the same states and the
same logits of the kept pieces. Tensors are read one at a time, so memory is about the size of the new model.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers import AutoModel, AutoModelForMaskedLM
from transformers.utils import logging

from cclm.data.sentencepiece import SENTENCEPIECE_NAME
from cclm.data.tokenizer_file import TOKENIZER_NAME, tokenizer_bytes
from cclm.data.tokens import pre_caption, read_special_as_text
from cclm.data.vocabulary import batches, kept_ids, prune_content, prune_settings, used_ids
from cclm.errors import CheckpointError
from cclm.hub.export import check_target, staging_directory
from cclm.hub.weight_files import in_memory, write_weights
from cclm.model.configuration_cclm import CCLMConfig
from cclm.model.modeling_cclm import CCLMModel
from cclm.pretrained.source_files import read_folder

REPORT_NAME = "pruning.json"
STATES, LOGITS = 1e-5, 1e-4
"""Largest differences allowed: the same sums, in memory of another alignment and matrices of another height."""
PROBE_PIECES = 8
"""Length of the text that models are compared on: short enough for every position table."""
TABLES = (
    r"(text_encoder|answer_decoder)\.embeddings\.words\.weight",
    r"(answer_decoder\.)?masked_lm_decoder\.(weight|bias)",
    r"(\w+\.)?(embeddings\.(word|tok)_embeddings|embed_tokens)\.weight",
    r"(lm_predictions\.)?lm_head\.(weight|bias|decoder\.weight|decoder\.bias)",
    r"(cls\.predictions\.)?(bias|decoder\.weight|decoder\.bias)",
)
"""Names of tensors with a row for each piece, in our folders and in those of XLM-R, BERT, DeBERTa-v2, ModernBERT and
EuroBERT."""
MASKED_LM = ("lm_head.", "cls.predictions.", "decoder.")
"""How names of a masked-LM head begin in a folder that `AutoModelForMaskedLM` reads whole."""
COPIED = re.compile(
    r".*\.py|preprocessor_config\.json|processor_config\.json|special_tokens_map\.json|import\.json"
    r"|tokenizer_config\.json|modules\.json|config_sentence_transformers\.json"
)
"""Files that stay as they are. Parity reports, cards and other forms of the tokenizer would be wrong: left behind."""


@dataclass(frozen=True, kw_only=True)
class Pruned:
    """What pruning did; the content of `pruning.json`."""

    texts: int
    pieces_before: int
    pieces_after: int
    parameters_before: int
    parameters_after: int
    tables: list[str]
    left_behind: list[str]
    max_abs_states: float
    """Largest difference of the text states of a fixed batch."""
    max_abs_logits: float
    """Largest difference of the kept pieces' masked-LM logits; 0 without such a head."""


def prune_vocabulary(folder: Path, texts: Callable[[], Iterable[str]], to: Path, *, as_written: bool = False) -> Pruned:
    """Write a copy of `folder` with fewer pieces to `to`.

    `texts` gives the corpus; it is called twice, to count and to check. `as_written`: each text counts as it is, and
    not also as published models prepare it (`cclm.data.tokens.pre_caption`).

    Raises:
        CheckpointError: no such folder, no texts, or a check that fails.
    """
    content = begin(folder, to)
    before = tokenizer_of(content)
    forms = iter if as_written else both_forms
    counts = used_ids(before, forms(texts()))
    if not counts:
        raise wrong(folder, "a corpus with texts", "no piece at all", "Name shard sets or text files with texts.")
    keep = kept_ids(content, counts)
    after = tokenizer_of(prune_content(content, keep))
    numbers = count()
    counted = (text for text, _ in zip(texts(), numbers, strict=False))
    for old, new in encoded_by_both(before, after, forms(counted)):
        if old.tokens != new.tokens or [keep[item] for item in new.ids] != old.ids:
            wanted, got = str(old.tokens[:8]), str(new.tokens[:8])
            raise wrong(folder, f"the pieces {wanted}", got, "Please report this tokenizer.")
    with staging_directory(to) as hidden:
        hidden.mkdir()
        pruned = Pruned(
            texts=next(numbers),
            pieces_before=before.get_vocab_size(),
            pieces_after=len(keep),
            **_write_weights(folder, hidden, keep),
            left_behind=_write_papers(folder, hidden, content, keep),
            **_check_model(folder, hidden, keep),
        )
        (hidden / REPORT_NAME).write_text(json.dumps(asdict(pruned), indent=1) + "\n", encoding="utf-8")
    return pruned


def begin(folder: Path, to: Path) -> dict[str, Any]:
    """Return the tokenizer.json of a folder whose changed copy will be `to` (CheckpointError: it cannot be)."""
    if to.exists():
        raise wrong(to, "a new folder", "one that exists", "Give another --to, or move it away.")
    check_target(to)
    if not any((folder / name).is_file() for name in (TOKENIZER_NAME, SENTENCEPIECE_NAME)):
        raise wrong(folder, "a folder with tokenizer.json", "none", "Import or export with its tokenizer first.")
    content: dict[str, Any] = json.loads(Tokenizer.from_buffer(tokenizer_bytes(folder)).to_str())  # of old forms, too
    return content


def tokenizer_of(content: Mapping[str, Any]) -> Tokenizer:
    """A tokenizer that reads whole texts as texts."""
    tokenizer = Tokenizer.from_str(json.dumps(content, ensure_ascii=False))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    read_special_as_text(tokenizer)
    return tokenizer


def both_forms(texts: Iterable[str]) -> Iterable[str]:
    """Each text as it is, and as published models prepare it."""
    for text in texts:
        yield text
        yield pre_caption(text)


def encoded_by_both(before: Tokenizer, after: Tokenizer, texts: Iterable[str]) -> Iterator[tuple[Any, Any]]:
    """Each text's encodings by two tokenizers."""
    for batch in batches(texts):
        yield from zip(*(item.encode_batch(batch, add_special_tokens=False) for item in (before, after)), strict=True)


def _write_weights(folder: Path, hidden: Path, keep: list[int]) -> dict[str, Any]:
    state = read_folder(folder)
    tables, index = find_tables(folder, state, keep[-1] + 1), torch.tensor(keep)
    pruned = {name: (value[index] if name in tables else value) for name, value in state.items()}
    write_tensors(pruned, hidden)
    return {
        "parameters_before": sum(value.numel() for value in state.values()),
        "parameters_after": sum(value.numel() for value in pruned.values()),
        "tables": tables,
    }


def write_tensors(state: Mapping[str, Tensor], folder: Path) -> None:
    """Write model.safetensors: one file, whatever its size."""
    write_weights(in_memory(state), folder, names=list(state), dtype=None, shard_bytes=sys.maxsize)


def find_tables(folder: Path, state: Mapping[str, Tensor], pieces: int) -> list[str]:
    """Return the names of the tables with a row for each piece (CheckpointError: none, or too few rows)."""
    tables = [name for name in state if any(re.fullmatch(pattern, name) for pattern in TABLES)]
    if not tables:
        raise wrong(folder, "a model with word embeddings", f"{len(state)} other tensors", "Give another folder.")
    rows = {state[name].shape[0] for name in tables}
    if len(rows) != 1 or min(rows) < pieces:
        raise wrong(
            folder,
            f"tables with one row for each of the tokenizer's pieces (at least {pieces})",
            ", ".join(f"{name} with {state[name].shape[0]}" for name in tables),
            "Give a folder whose tokenizer belongs to its weights.",
        )
    return tables


def _write_papers(folder: Path, hidden: Path, content: dict[str, Any], keep: list[int]) -> list[str]:
    new_id = {old: new for new, old in enumerate(keep)}
    config, sized = sized_config(folder, len(keep))
    for place in [config] if sized is config else [config, sized]:  # each once: an id is renumbered once
        ids = {key: value for key, value in place.items() if key.endswith("_token_id") and isinstance(value, int)}
        place.update({key: new_id[value] for key, value in ids.items() if value in new_id})
    written = {"config.json": config, TOKENIZER_NAME: prune_content(content, keep)}
    settings = folder / "tokenizer_config.json"
    if settings.is_file():
        written[settings.name] = prune_settings(json.loads(settings.read_text(encoding="utf-8")), keep)
    return write_papers(folder, hidden, written)


def sized_config(folder: Path, vocab_size: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return config.json with another number of pieces, and the part of it that says so (it may be the whole)."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    sized = config["text"] if config.get("model_type") == CCLMConfig.model_type else config
    sized["vocab_size"] = vocab_size
    return config, sized


def write_papers(folder: Path, hidden: Path, written: Mapping[str, Any]) -> list[str]:
    """Write JSON files by name, and copy what is true of the new model too; return what was left behind."""
    for name, value in written.items():
        (hidden / name).write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    left = []
    for path in sorted(folder.iterdir()):
        if path.name in written:
            continue
        if path.is_file() and COPIED.fullmatch(path.name):
            shutil.copyfile(path, hidden / path.name)
        elif not path.name.startswith(("model.safetensors", "model-", "pytorch_model")):
            left.append(path.name)
    return left


def _check_model(folder: Path, hidden: Path, keep: list[int]) -> dict[str, Any]:
    new_B = torch.linspace(0, len(keep) - 1, PROBE_PIECES).long().view(1, -1)
    states_before, logits_before = states_and_logits(folder, torch.tensor(keep)[new_B])
    states_after, logits_after = states_and_logits(hidden, new_B)
    states = (states_before - states_after).abs().max().item()
    logits = 0.0 if logits_after is None else (logits_before[..., keep] - logits_after).abs().max().item()
    return close_enough(folder, states, logits, LOGITS)


def close_enough(folder: Path, states: float, logits: float, limit: float) -> dict[str, float]:
    """Return the largest differences for a report (CheckpointError: they are larger than `STATES` or `limit`)."""
    if states > STATES or logits > limit:
        got = f"differences of {states:.1e} and {logits:.1e}"
        raise wrong(folder, f"states within {STATES:g}, logits within {limit:.1e}", got, "Please report this model.")
    return {"max_abs_states": states, "max_abs_logits": logits}


@torch.inference_mode()
def states_and_logits(folder: Path, ids_BL: Tensor) -> tuple[Any, Any]:
    """Text states and masked-LM logits (None without such a head) of a folder's model, in fp32."""
    kind = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
    if kind == CCLMConfig.model_type:
        ours = CCLMModel.from_pretrained(folder, dtype=torch.float32).eval()
        states = ours.encode_texts(ids_BL, torch.ones_like(ids_BL, dtype=torch.bool))
        if ours.masked_lm_transform is None:
            return states, None
        return states, ours.decode_with(ours.masked_lm_states(states[0]), torch.nn.functional.linear)
    has_head = any(name.startswith(MASKED_LM) for name in read_folder(folder))
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # else it reports a pooler that the folder may lack: no state depends on it
    try:
        theirs = (AutoModelForMaskedLM if has_head else AutoModel).from_pretrained(folder, dtype=torch.float32).eval()
    finally:
        logging.set_verbosity(verbosity)
    output = theirs(input_ids=ids_BL, output_hidden_states=True)
    return output.hidden_states[-1], output.logits[0] if has_head else None


def wrong(folder: Path, expected: str, got: str, do: str) -> CheckpointError:
    """Return the error about a folder."""
    return CheckpointError(where=str(folder), expected=expected, got=got, do=do)
