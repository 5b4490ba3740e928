"""A tiny pre-trained run and a task's stand-in data, and the command line that fine-tunes the one on the other."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers

from cclm.cli.__main__ import main as cclm
from finetune.__main__ import main
from finetune.stand_in import LANGUAGES
from pretrain.__main__ import main as pretrain
from tests.ranks.harness import in_group, on_ranks
from tests.tiny_run import recipe, write_corpus, write_recipe
from tests.unit.data.data_sets import WORDS

ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENT = {**os.environ, "PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
PROGRAMS = {"pretrain": pretrain, "finetune": main, "cclm.cli": cclm}
SEEDS = (42, 43, 44)
"""A network this small sometimes stays where it knows the answers but not the images (two in three right); with which
seed it does differs between CPUs, by their rounding. It must not with all of these."""


def write_tokenizer(folder: Path) -> None:
    """A tokenizer that knows the words of all stand-in data."""
    own = {word for words in LANGUAGES.values() for text in words.values() for word in text.split()}
    tokens = ["<s>", "<pad>", "</s>", "<unk>", *WORDS, *sorted(own - set(WORDS)), "<mask>"]
    tokenizer = Tokenizer(models.WordLevel({token: index for index, token in enumerate(tokens)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(folder / "tokenizer.json"))


def pretrained_run(folder: Path) -> Path:
    """Pre-train two steps; returns the run folder."""
    corpus = write_corpus(folder)
    write_tokenizer(corpus / "tokenizer")
    settings = recipe(corpus, folder / "run", optimizer={"total_steps": 2, "learning_rate": 0.002}, engine="plain")
    settings["model"]["text"]["max_positions"] = 16
    settings["model"] |= {"width": 64, "fusion": {**settings["model"]["fusion"], "num_layers": 2}}
    path = write_recipe(folder / "pretrain.yaml", settings)
    run_here(["-m", "pretrain", "--recipe", str(path)])
    return folder / "run"


def stand_in(task: str, folder: Path) -> Path:
    """Draw a task's data."""
    assert main(["stand-in", task, str(folder)]) == 0
    return folder


def command(task: str, checkpoint: Path, data: Path, run_folder: Path, changes: Mapping[str, Any]) -> list[str]:
    """The words behind `python`; `changes` are settings by dotted key."""
    settings = {
        "run_folder": str(run_folder),
        "device": "cpu",
        "precision": "fp32",
        "deepspeed": "ds_configs/zero3_cpu.json",
        "model.vision.image_size": 16,
        "data.num_workers": 0,
        "optimizer.learning_rate": 0.005,
        "finetune.epochs": 30,
        "finetune.evaluation_batch": 5,
        "track": {"every_steps": 1, "tensorboard": False},
        **changes,
    }
    words = [word for key, value in settings.items() for word in (f"--{key}", json.dumps(value))]
    where = [] if task == "retrieval" else ["--data", str(data)]
    return ["-m", "finetune", task, "--checkpoint", str(checkpoint), *where, *words]


def under_launcher(words: list[str], ranks: int) -> list[str]:
    """The same on several ranks."""
    folder = json.loads(words[words.index("--run_folder") + 1])
    start = [sys.executable, "-m", "launch", "run", "--ranks", str(ranks), "--run-folder", folder, "--"]
    return [*start, "python", *words]


def run_here(words: list[str], ranks: int = 0) -> None:
    """Run a program to its end where all is imported: in this process, with the plain engine, or on ranks."""
    program = PROGRAMS[words[1]]
    if ranks:
        assert on_ranks(in_group, ranks, program, words[2:], timeout_s=1800.0) == [0] * ranks
        return
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert program(words[2:]) == 0, words
    finally:
        torch.set_num_threads(before)


def run(words: list[str]) -> None:
    """Run a program to its end as a user starts it."""
    arguments = [sys.executable, *words]
    done = subprocess.run(
        arguments, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=1800, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


SIZES = {"width": 16, "classes": 3}


def alone(data: Path, tokenizer: Path, **view: Any) -> dict[str, Any]:
    """Settings of a run that learns a task's stand-in data without a model to start from."""
    layers = {"num_layers": 1, "num_heads": 2, "feedforward_width": 32}
    return {
        "run_folder": str(data / "run"),
        "seed": 7,
        "device": "cpu",
        "finetune": {"task": "xvnli", "epochs": 2, "protocol": "zero-shot"},
        "views": {
            "classify": {
                "folder": str(data),
                "format": "xvnli",
                "images": "flickr30k-images",
                "sources": {"en": {"path": "annotations/en/train.jsonl"}},
                "dev": {"en": "annotations/en/dev.jsonl"},
                "test": {"en": "annotations/en/test.jsonl"},
                "batch_size": 6,
                "max_tokens": 8,
                "transform": {"method": "affine", "size": 16},
                **view,
            }
        },
        "data": {"tokenizer": str(tokenizer)},
        "model": {
            "width": SIZES["width"],
            "num_classes": SIZES["classes"],
            "pretraining_heads": False,
            "masked_lm_head": False,
            "vision": {**layers, "image_size": 16, "stem_channels": [8, 16], "stem_norm": "layer"},
            "text": {**layers, "max_positions": 8},
            "fusion": layers,
        },
        "optimizer": {"total_steps": 4, "learning_rate": 0.002},
        "track": {"every_steps": 1, "tensorboard": False},
    }
