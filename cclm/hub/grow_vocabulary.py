"""`cclm grow-vocabulary`: pieces for languages that a tokenizer cuts into crumbs or does not know; inverse of pruning.

    FOLDER (an export or import of ours, or an XLM-R) + shard sets or text files
        ─▶ new pieces, ids behind the old ones ─▶ rows of every table: means of the old pieces' rows ─▶ new folder

A new piece of which a part is unknown (a script that the tokenizer lacks) gets rows drawn with the mean and
deviation of each table's columns: the rows of such pieces must differ, or nothing could tell them apart.

Checked, or nothing is written: texts without a new piece keep their ids; a fixed batch of old ids gives the same states
and logits; the logits of a new piece are the means of its parts' (Hewitt 2021, "Initializing New Word Embeddings for
Pretrained Language Models").
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cclm.data.grown_vocabulary import NewPiece, checked_content, choose_pieces, grown_content
from cclm.data.tokenizer_file import TOKENIZER_NAME
from cclm.hub.export import staging_directory
from cclm.hub.prune_vocabulary import (
    LOGITS,
    PROBE_PIECES,
    begin,
    both_forms,
    close_enough,
    encoded_by_both,
    find_tables,
    sized_config,
    states_and_logits,
    tokenizer_of,
    write_papers,
    write_tensors,
    wrong,
)
from cclm.pretrained.source_files import read_folder

REPORT_NAME = "growing.json"
SEED = 0


@dataclass(frozen=True, kw_only=True)
class Grown:
    """What growing did; the content of `growing.json`."""

    texts: int
    pieces_before: int
    pieces_after: int
    tokens_before: int
    """Of all texts, as they are and as published models prepare them."""
    tokens_after: int
    unknown_before: int
    """Tokens that stand for unknown characters."""
    unknown_after: int
    rows_drawn: int
    """Of new pieces with an unknown part."""
    tables: list[str]
    left_behind: list[str]
    max_abs_states: float
    """Largest difference of the text states of a fixed batch of old ids."""
    max_abs_logits: float
    """Largest difference of old pieces' logits, and of new ones' from the mean of their parts'; 0 without a head."""


def grow_vocabulary(folder: Path, texts: Callable[[], Iterable[str]], to: Path, most: int) -> Grown:
    """Write a copy of `folder` with up to `most` more pieces to `to`.

    `texts` gives the corpus; it is called twice, to choose and to check. Each text counts as it is and as published
    models prepare it (`cclm.data.tokens.pre_caption`). There are fewer pieces if the corpus has not so many that save a
    token.

    Raises:
        CheckpointError: no such folder, no piece to add, or a check that fails.
        ConfigError: a tokenizer of another kind.
    """
    content = checked_content(begin(folder, to))
    before = tokenizer_of(content)
    new = choose_pieces(before, content, both_forms(texts()), most)
    if not new:
        raise wrong(folder, "texts with pieces that the tokenizer lacks", "none", "Name texts of the new languages.")
    grown = grown_content(content, new)
    counts = _check_pieces(before, tokenizer_of(grown), content["model"].get("unk_id"), both_forms(texts()), folder)
    num_old = len(content["model"]["vocab"])
    with staging_directory(to) as hidden:
        hidden.mkdir()
        written = {"config.json": sized_config(folder, num_old + len(new))[0], TOKENIZER_NAME: grown}
        report = Grown(
            pieces_before=num_old,
            pieces_after=num_old + len(new),
            rows_drawn=sum(not piece.parts for piece in new),
            tables=_write_weights(folder, hidden, num_old, new),
            left_behind=write_papers(folder, hidden, written),
            **counts,
            **_check_model(folder, hidden, num_old, new),
        )
        (hidden / REPORT_NAME).write_text(json.dumps(asdict(report), indent=1) + "\n", encoding="utf-8")
    return report


def _check_pieces(before: Any, after: Any, unknown: int | None, texts: Iterable[str], folder: Path) -> dict[str, int]:
    """Check that texts without a new piece keep their ids; count texts and tokens."""
    num_old, counted = before.get_vocab_size(), [0] * 5
    for old, new in encoded_by_both(before, after, texts):
        if new.ids != old.ids and max(new.ids, default=0) < num_old:
            raise wrong(folder, str(old.tokens[:8]), str(new.tokens[:8]), "Please report this tokenizer.")
        found = 1, len(old.ids), len(new.ids), old.ids.count(unknown), new.ids.count(unknown)
        counted = [total + more for total, more in zip(counted, found, strict=True)]
    names = ("texts", "tokens_before", "tokens_after", "unknown_before", "unknown_after")
    return dict(zip(names, counted, strict=True)) | {"texts": counted[0] // 2}


def _write_weights(folder: Path, hidden: Path, num_old: int, new: Sequence[NewPiece]) -> list[str]:
    """Write the new model.safetensors; return the names of the tables that grew."""
    state = read_folder(folder)
    tables = find_tables(folder, state, num_old)
    grown = {name: grown_table(value, num_old, new) if name in tables else value for name, value in state.items()}
    write_tensors(grown, hidden)
    return tables


def grown_table(table: Tensor, num_old: int, new: Sequence[NewPiece]) -> Tensor:
    """Return a table (P, …) with a row for each old and each new piece; rows that belong to no piece are left out."""
    old = table[:num_old].float()
    mean, deviation = old.mean(0), old.std(0)
    generator = torch.Generator().manual_seed(SEED)
    rows = []
    for piece in new:
        drawn = mean + deviation * torch.randn(mean.shape, generator=generator)
        rows.append(old[list(piece.parts)].mean(0) if piece.parts else drawn)
    return torch.cat([table[:num_old], torch.stack(rows).to(table.dtype)])


def _check_model(folder: Path, hidden: Path, num_old: int, new: Sequence[NewPiece]) -> dict[str, Any]:
    """Check that old ids give the same states and logits, and new logits are means; return the largest differences.

    New rows are rounded as the folder's tensors are, so logits may differ by that share of the largest one.
    """
    dtypes = {value.dtype for value in read_folder(folder).values() if value.is_floating_point()}
    rounding = max(0.0 if dtype is torch.float32 else torch.finfo(dtype).eps for dtype in dtypes)
    ids_BL = torch.linspace(0, num_old - 1, PROBE_PIECES).long().view(1, -1)
    states_before, logits_before = states_and_logits(folder, ids_BL)
    states_after, logits_after = states_and_logits(hidden, ids_BL)
    states, logits, limit = (states_before - states_after).abs().max().item(), 0.0, LOGITS
    if logits_after is not None:
        old = logits_before[..., :num_old]
        means = [old[..., list(piece.parts)].mean(-1) for piece in new if piece.parts]
        placed = [number for number, piece in enumerate(new, num_old) if piece.parts]
        expected = torch.cat([old, torch.stack(means, -1)], -1) if means else old
        logits = (expected - logits_after[..., [*range(num_old), *placed]]).abs().max().item()
        limit += rounding * logits_before.abs().max().item()
    return close_enough(folder, states, logits, limit)
