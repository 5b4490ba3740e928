"""Whatever stands in a file that people write, the answer is a value or a ConfigError."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cclm.engine.ds_config import EngineFacts, resolve_ds_file
from cclm.errors import ConfigError
from cclm.recipe.check import check_recipe
from cclm.recipe.read import RECIPES, read_recipe
from launch.plan.request import PROFILES, read_profile
from shards.recipe import load_recipe
from tests.tiny_config import run_values

DEMO = (RECIPES / "demo.yaml").read_text(encoding="utf-8")
SMALL = yaml.safe_dump(run_values())
TOML = """
run_folder = "runs/x"
seed = 3
[data]
tokenizer = "t"
[views]
image_text = {batch_size = 16, negative_group = 8, matching_rows = 8, transform = {size = 32}, sources.a.path = "a"}
[views.text_pair]
sources = {b = {path = "b"}}
mix = {language_weights = {en = 2.0}}
[optimizer]
total_steps = 10
betas = [0.9, 0.98]
"""
PIECES = [
    "\n",
    ": ",
    "- ",
    "{",
    "}",
    "[",
    "]",
    "&a ",
    "*a",
    "<<: ",
    "~",
    "no",
    "1e999",
    "'",
    '"',
    "\t",
    "!x ",
    "\x00",
    "é",
]
FEW = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@st.composite
def mutated(draw: st.DrawFn, text: str) -> bytes:
    """A text with a few places cut out, doubled, replaced or broken, also inside of a character."""
    content = text.encode()
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(content)))
        stop = min(len(content), start + draw(st.integers(0, 40)))
        piece = draw(st.sampled_from(PIECES).map(str.encode) | st.binary(max_size=3) | st.just(content[start:stop] * 2))
        content = content[:start] + piece + content[stop:]
    return content


def written(folder: Path, name: str, content: bytes) -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


def tried(read: Any, *arguments: Any, **options: Any) -> None:
    try:
        read(*arguments, **options)
    except ConfigError as error:
        assert error.problems and str(error)


@FEW
@given(content=mutated(DEMO) | mutated(SMALL))
def test_recipes(tmp_path: Path, content: bytes) -> None:
    tried(check_recipe, ["--recipe", str(written(tmp_path, "a.yaml", content))], world_size=2)


@FEW
@given(content=mutated(json.dumps(run_values(), indent=1)))
def test_recipes_in_json(tmp_path: Path, content: bytes) -> None:
    tried(check_recipe, ["--recipe", str(written(tmp_path, "a.json", content))], world_size=2)


@FEW
@given(content=mutated(TOML))
def test_recipes_in_toml(tmp_path: Path, content: bytes) -> None:
    tried(check_recipe, ["--recipe", str(written(tmp_path, "a.toml", content))], world_size=2)


@FEW
@given(
    words=st.lists(
        st.sampled_from(["--seed", "--data", "--views.text_pair.mix=", "{", "~", "--", "--x.y", "[no]", "-h"])
    )
)
def test_command_lines(words: list[str]) -> None:
    tried(read_recipe, ["--recipe", "demo", *words])


@FEW
@given(word=st.text(max_size=8), key=st.sampled_from(["seed", "run_folder", "model.vision", "optimizer.betas", "x"]))
def test_values_on_a_command_line(word: str, key: str) -> None:
    tried(read_recipe, ["--recipe", "demo", f"--{key}={word}"])


@FEW
@given(content=mutated(Path("ds_configs/zero3_bf16.json").read_text(encoding="utf-8")))
def test_deepspeed_json(tmp_path: Path, content: bytes) -> None:
    facts = EngineFacts(micro_batch_size=1, world_size=1, precision="bf16")
    tried(resolve_ds_file, str(written(tmp_path, "a.json", content)), facts)


@FEW
@given(content=mutated(Path("shards/recipes/demo.yaml").read_text(encoding="utf-8")))
def test_shard_recipes(tmp_path: Path, content: bytes) -> None:
    tried(load_recipe, written(tmp_path, "a.yaml", content), packages=tmp_path)


@FEW
@given(content=mutated((PROFILES / "pyxis.yaml").read_text(encoding="utf-8")))
def test_profiles(tmp_path: Path, content: bytes) -> None:
    tried(read_profile, str(written(tmp_path, "a.yaml", content)))


def test_the_texts_are_sound_before_they_are_changed(tmp_path: Path) -> None:
    pytest.importorskip("tomllib")
    for name, text in {"a.yaml": SMALL, "b.toml": TOML, "c.json": json.dumps(run_values())}.items():
        assert read_recipe(["--recipe", str(written(tmp_path, name, text.encode()))]).steps > 0
