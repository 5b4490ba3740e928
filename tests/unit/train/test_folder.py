"""A run folder knows its run."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from cclm.config import CheckpointConfig, RunConfig
from cclm.data.config import SourceConfig
from cclm.errors import CheckpointError, ConfigError
from cclm.objectives.options import ObjectiveConfig
from cclm.run.status import DoneMarker
from cclm.train.folder import differences, identity_parts, input_hashes, refuse_another_run, write_identity
from tests.tiny_run import recipe, write_corpus
from tests.tiny_training import as_config


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    write_corpus(tmp_path)
    return as_config(recipe(tmp_path, tmp_path / "run"))


def begin(folder: Path) -> None:
    """The least that makes a folder one to go on from."""
    DoneMarker(folder).write(step=1, seconds=1.0)


def test_same_run_is_welcome_and_another_is_named(config: RunConfig, tmp_path: Path) -> None:
    folder, inputs = tmp_path / "run", input_hashes(config, {"stage": 3})
    refuse_another_run(folder, config, inputs)
    write_identity(folder, config, inputs, {"stage": 3})
    begin(folder)
    refuse_another_run(folder, config, inputs)
    refuse_another_run(folder, replace(config, checkpoint=CheckpointConfig(every_steps=7)), inputs)
    other = replace(config, seed=8, objectives=ObjectiveConfig(mlm_weight=0.5))
    with pytest.raises(ConfigError, match=r"objectives\.mlm_weight.*seed"):
        refuse_another_run(folder, other, inputs)


def test_a_start_that_failed_before_its_first_checkpoint_leaves_the_folder_to_the_next(
    config: RunConfig, tmp_path: Path
) -> None:
    write_identity(tmp_path / "run", config, input_hashes(config, None), None)
    other = replace(config, seed=8)
    refuse_another_run(tmp_path / "run", other, input_hashes(config, None))
    write_identity(tmp_path / "run", other, input_hashes(config, None), None)
    assert "seed: 8" in (tmp_path / "run" / "config.yaml").read_text().splitlines()


def test_the_number_of_ranks_makes_no_other_run(config: RunConfig) -> None:
    of_one = {"zero_optimization": {"stage": 3}, "train_batch_size": 8, "train_micro_batch_size_per_gpu": 8}
    of_two = {**of_one, "train_micro_batch_size_per_gpu": 4}
    assert input_hashes(config, of_one) == input_hashes(config, of_two)


@pytest.mark.parametrize("name", ["config.yaml", "inputs.json"])
def test_half_a_file_is_named(config: RunConfig, tmp_path: Path, name: str) -> None:
    write_identity(tmp_path / "run", config, input_hashes(config, None), None)
    begin(tmp_path / "run")
    (tmp_path / "run" / name).write_text('{"a": [1, ')
    with pytest.raises(
        CheckpointError, match=rf"run/{name}: expected what the run was started with.*Put the file back"
    ):
        refuse_another_run(tmp_path / "run", config, input_hashes(config, None))


def test_a_changed_deepspeed_json_is_another_run(config: RunConfig, tmp_path: Path) -> None:
    write_identity(tmp_path / "run", config, input_hashes(config, {"stage": 3}), {"stage": 3})
    begin(tmp_path / "run")
    with pytest.raises(ConfigError, match="content of DeepSpeed JSON"):
        refuse_another_run(tmp_path / "run", config, input_hashes(config, {"stage": 2}))


def test_changed_shards_are_another_run(config: RunConfig, tmp_path: Path) -> None:
    before = input_hashes(config, None)
    manifest = tmp_path / "pairs" / "manifest.json"
    document = json.loads(manifest.read_text(encoding="utf-8"))
    document["shards"][0]["sha256"] = "0" * 64
    manifest.write_text(json.dumps(document), encoding="utf-8")
    after = input_hashes(config, None)
    assert {name for name in before if before[name] != after[name]} == {str(manifest)}
    parts, others = identity_parts(config, before), identity_parts(config, after)
    assert [name for name in parts if parts[name] != others[name]] == ["files that the configuration names"]
    assert {"torch", "deepspeed", "data", "model", "optimizer"} < parts.keys()


def test_the_same_shards_built_by_another_command_are_the_same_input(config: RunConfig, tmp_path: Path) -> None:
    before = input_hashes(config, None)
    manifest = tmp_path / "pairs" / "manifest.json"
    document = json.loads(manifest.read_text(encoding="utf-8"))
    manifest.write_text(json.dumps({**document, "command": "python -m shards build mine.yaml --out /elsewhere"}))
    assert input_hashes(config, None) == before
    manifest.write_text("{broken")
    assert input_hashes(config, None) != before


def test_where_views_and_sources_stand_makes_no_other_run(config: RunConfig, tmp_path: Path) -> None:
    two = {"images": config.views["image_text"].sources["images"], "again": SourceConfig(path=str(tmp_path / "images"))}
    views = {**config.views, "image_text": replace(config.views["image_text"], sources=two)}
    turned = {**views, "image_text": replace(config.views["image_text"], sources=dict(reversed(two.items())))}
    first, second = replace(config, views=views), replace(config, views=dict(reversed(turned.items())))
    inputs = input_hashes(first, None)
    assert input_hashes(second, None) == inputs and identity_parts(second, inputs) == identity_parts(first, inputs)
    write_identity(tmp_path / "run", first, inputs, None)
    begin(tmp_path / "run")
    refuse_another_run(tmp_path / "run", second, inputs)
    renamed = {"pictures": two["images"], "again": two["again"]}
    third = replace(first, views={**views, "image_text": replace(config.views["image_text"], sources=renamed)})
    with pytest.raises(ConfigError, match=r"other values of views\.image_text\.sources\.images, .*\.pictures"):
        refuse_another_run(tmp_path / "run", third, inputs)


def test_missing_tokenizer(config: RunConfig, tmp_path: Path) -> None:
    (tmp_path / "tokenizer" / "tokenizer.json").unlink()
    with pytest.raises(ConfigError, match=r"a tokenizer folder with tokenizer\.json, got no .*tokenizer\.json"):
        input_hashes(config, None)


def test_differences_walk_down() -> None:
    before = {"a": {"b": 1, "c": [1]}, "track": {"every_steps": 1}, "gone": 1}
    after = {"a": {"b": 2, "c": [1]}, "track": {"every_steps": 9}, "new": None}
    assert differences(before, after) == ["a.b", "gone"]
