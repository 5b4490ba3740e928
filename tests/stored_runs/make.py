"""`python -m tests.stored_runs FOLDER`: write the smallest run with a checkpoint, and what the steps after it found.

    FOLDER/config.yaml, ledger.jsonl, checkpoints/step_000000002/      of one ZeRO-3 rank
    FOLDER/expected.json                                               losses of the steps that the run then did

A folder beside this file for each format version of checkpoints that is still read, written by the code of its time:
when `cclm.run.checkpoints.FORMAT_VERSION` grows, run it before that, if there is none yet, and after it.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from tokenizers import Tokenizer, models, pre_tokenizers

from cclm.config import RunConfig
from cclm.run.signals import StopRequest
from cclm.train.build import open_run
from cclm.train.loop import train
from tests.ranks.harness import on_ranks
from tests.tiny_run import recipe, write_corpus
from tests.tiny_training import as_config

STOP, END = 2, 4
KEPT = ("config.yaml", "ledger.jsonl", "checkpoints")
SMALL = {"num_layers": 1, "num_heads": 1, "feedforward_width": 4}
WORDS = ("aa", "ab", "ba", "bb", "ca")
"""All that the tokenizer knows."""


def config_of(folder: Path, run: Path, **changes: Any) -> RunConfig:
    """Write a corpus into an empty folder; return the run's configuration."""
    corpus = write_corpus(folder)
    vocabulary = {token: index for index, token in enumerate(["<s>", "<pad>", "</s>", "<unk>", *WORDS, "<mask>"])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(corpus / "tokenizer" / "tokenizer.json"))
    model = {
        "width": 4,
        "projection_width": 4,
        "matching_width": 4,
        "vision": {**SMALL, "image_size": 16, "stem_channels": [4, 4], "stem_norm": "layer"},
        "text": {**SMALL, "max_positions": 8},
        "fusion": SMALL,
    }
    usual = {
        "model": model,
        "optimizer": {"total_steps": STOP, "learning_rate": 0.002},
        "track": {"every_steps": 1, "tensorboard": False},
        "deepspeed": "zero3_cpu",
    }
    return as_config(recipe(corpus, run, **{**usual, **changes}))


def train_on_rank(config: RunConfig) -> None:
    """Train on this rank of those that have met already, or on one process."""
    torch.set_num_threads(1)
    has_met = patch("cclm.train.build.process_group", lambda topology: nullcontext())
    with has_met if config.engine == "deepspeed" else nullcontext(), open_run(config, StopRequest()) as run:
        assert run is not None and train(run)


def losses_of(run: Path) -> dict[int, float]:
    """Return the logged loss of each step."""
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    return {line["step"]: line["values"]["loss"] for line in lines}


def main(place: Path) -> None:
    """Write it."""
    with tempfile.TemporaryDirectory() as temporary:
        run = Path(temporary) / "run"
        config = config_of(Path(temporary) / "corpus", run)
        on_ranks(train_on_rank, 1, config, timeout_s=300.0)
        for name in KEPT:
            copy = shutil.copytree if (run / name).is_dir() else shutil.copy
            place.mkdir(parents=True, exist_ok=True)
            copy(run / name, place / name)
        longer = replace(config, optimizer=replace(config.optimizer, total_steps=END))
        on_ranks(train_on_rank, 1, longer, timeout_s=300.0)
        found = {step: loss for step, loss in losses_of(run).items() if step >= STOP}
    (place / "expected.json").write_text(json.dumps(found) + "\n", encoding="utf-8")
