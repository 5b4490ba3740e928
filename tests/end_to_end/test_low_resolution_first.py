"""Low resolution and half the patches first, all patches of twice the resolution last: as docs/recipes.md says it."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from cclm.cli.__main__ import main as cclm
from cclm.engine.stored_weights import load_full_state
from cclm.hub.open import open_model
from cclm.run.checkpoints import newest_complete
from pretrain.__main__ import main as pretrain
from tests.tiny_run import LAYERS, recipe, write_corpus, write_recipe

pytestmark = pytest.mark.slow
RECIPES = Path(__file__).resolve().parents[2] / "docs" / "recipes.md"
TINY = {"mine": "mine.yaml", "112": "8", "2000": "6"}
"""What stands in the page → here."""
TOWERS: dict[str, dict[str, Any]] = {
    "conv_vit": {"stem_channels": [8, 16], "stem_norm": "layer"},
    "beit": {"architecture": "beit", "patch_size": 4},
}


def commands() -> list[list[str]]:
    """The page's three, word by word."""
    page = RECIPES.read_text(encoding="utf-8").split("## Half the patches, and low resolution first")[1]
    lines = [line.strip() for line in page.split("\n## ")[0].splitlines() if line.startswith("    ")]
    return [[TINY.get(word, word) for word in shlex.split(line)] for line in lines if line.strip()]


def run(words: list[str]) -> None:
    assert words[0] == "cclm" or words[:3] == ["python", "-m", "pretrain"]
    assert (cclm(words[1:]) if words[0] == "cclm" else pretrain(words[3:])) == 0, words


@pytest.mark.parametrize("tower", TOWERS)
def test_the_second_run_starts_from_what_the_first_has_learned(
    tower: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = recipe(write_corpus(tmp_path / "corpus"), tmp_path / "run", engine="plain")
    settings["model"]["vision"] = {**LAYERS, "image_size": 16, **TOWERS[tower]}
    settings["optimizer"] = {"total_steps": 4, "learning_rate": 1e-9}  # so the second run shows what it started from
    write_recipe(tmp_path / "mine.yaml", settings)
    low, export, high = commands()
    for words in (low, export, high):
        run(words)
    start = json.loads(Path("runs/high/start.json").read_text(encoding="utf-8"))
    assert start["fresh"] == []
    small = open_model(Path("runs/low-export")).model.state_dict()
    checkpoint = newest_complete(Path("runs/high"))
    assert checkpoint is not None and checkpoint.name.endswith("6")
    trained, stretched = load_full_state(checkpoint), set[str]()
    for name, before in small.items():
        value = trained[f"model.{name}"]
        if before.shape == value.shape:
            assert float((before - value).abs().max()) < 1e-5, name
        else:
            stretched.add(name)
    assert stretched and all("position" in name for name in stretched), "only tables of positions differ"
