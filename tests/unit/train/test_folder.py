"""A run folder knows its run."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest

from cclm.checkpoint.options import CheckpointConfig
from cclm.config import RunConfig
from cclm.data.options import SourceConfig, TeacherConfig
from cclm.errors import CheckpointError, ConfigError
from cclm.files.lines import StepLines
from cclm.files.typed import known_keys
from cclm.recipe.read import kinds_of, read_run_config
from cclm.train import retrieval_sets
from cclm.train.folder import (
    CHANGES_FILE,
    MAY_CHANGE,
    check_same_run,
    identity_parts,
    input_hashes,
    may_change,
    write_identity,
)
from cclm.views.table import VIEWS
from tests.tiny_checkpoint import write_checkpoint
from tests.tiny_finetune import stand_in
from tests.tiny_retrieval import settings_of
from tests.tiny_run import recipe, write_corpus
from tests.tiny_teacher import WIDTH, write_teacher
from tests.tiny_training import as_config
from tests.unit.data.data_sets import write_pairs


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture
def config(corpus: Path, tmp_path: Path) -> RunConfig:
    shutil.copytree(corpus, tmp_path, dirs_exist_ok=True)
    return as_config(recipe(tmp_path, tmp_path / "run"))


def refusal(folder: Path, config: RunConfig, inputs: dict[str, str]) -> list[str]:
    """The keys that keep a run from going on."""
    with pytest.raises(ConfigError) as caught:
        check_same_run(folder, config, inputs)
    assert "Going on with other settings" in caught.value.do
    return [problem.partition(":")[0] for problem in caught.value.problems]


def start(folder: Path, config: RunConfig, ds_config: dict[str, Any] | None = None) -> dict[str, str]:
    """A first start that got as far as a checkpoint at step 5."""
    inputs = input_hashes(config, ds_config)
    write_identity(folder, config, inputs, ds_config)
    write_checkpoint(folder, 5, "weights")
    return inputs


def test_same_run_is_welcome_and_another_is_named(config: RunConfig, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    check_same_run(folder, config, input_hashes(config, {"stage": 3}))
    inputs = start(folder, config, {"stage": 3})
    assert json.loads((folder / "ds_config.json").read_text()) == {"stage": 3}
    check_same_run(folder, config, inputs)
    other = replace(config, seed=8, objectives=replace(config.objectives, mlm_weight=0.5))
    assert refusal(folder, other, inputs) == ["objectives.mlm_weight", "seed"]


def test_what_may_change_is_noted_with_its_step(config: RunConfig, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    inputs = start(folder, config)
    optimizer = replace(config.optimizer, learning_rate=1e-4, total_steps=20, warmup_steps=3, max_grad_norm=0.5)
    other = replace(config, optimizer=optimizer, checkpoint=CheckpointConfig(every_steps=7), device="auto")
    other = replace(other, data=replace(config.data, num_workers=2, micro_batches=2))
    check_same_run(folder, other, inputs)
    write_identity(folder, other, inputs, None)
    (note,) = StepLines(folder / CHANGES_FILE).read()
    assert note["step"] == 5 and set(note["changed"]) == {
        *("optimizer.learning_rate", "optimizer.total_steps", "optimizer.warmup_steps", "optimizer.max_grad_norm"),
        *("checkpoint.every_steps", "device", "data.num_workers", "data.micro_batches"),
    }
    assert note["changed"]["optimizer.learning_rate"] == [0.002, 1e-4]
    assert read_run_config(folder) == other
    write_identity(folder, other, inputs, None)
    assert len(list(StepLines(folder / CHANGES_FILE).read())) == 1, "the same again is no change"


def test_every_key_of_the_table_exists() -> None:
    known = list(known_keys(RunConfig, kinds_of(VIEWS)))
    assert [key for key in MAY_CHANGE if not any(fnmatch(one, key) for one in known)] == []
    changing = {key for key in known if may_change(key)}
    assert {"views.text_pair.cache_groups", "views.regions.transform.cache_bytes", "data.cache.folder"} < changing
    assert not changing & {"views.text_pair", "views.text_pair.window", "views", "data", "data.tokenizer", "seed"}
    page = Path("docs/recipes.md").read_text(encoding="utf-8")
    missing = [key for key in MAY_CHANGE if f"`{key}`" not in page]
    assert missing == [], "docs/recipes.md holds the table"


def test_a_run_is_not_made_shorter_than_it_is(config: RunConfig, tmp_path: Path) -> None:
    inputs = start(tmp_path / "run", config)
    shorter = replace(config, optimizer=replace(config.optimizer, total_steps=4))
    assert refusal(tmp_path / "run", shorter, inputs) == ["optimizer.total_steps"]


def test_files_may_move_but_not_change(config: RunConfig, tmp_path: Path) -> None:
    inputs = start(tmp_path / "run", config)
    for name in ("images", "pairs", "tokenizer"):
        shutil.move(tmp_path / name, tmp_path / f"moved-{name}")
    moved = replace(
        config,
        data=replace(config.data, tokenizer=str(tmp_path / "moved-tokenizer")),
        views={
            name: replace(
                view, sources={one: SourceConfig(path=str(tmp_path / f"moved-{one}")) for one in view.sources}
            )
            for name, view in config.views.items()
        },
    )
    check_same_run(tmp_path / "run", moved, input_hashes(moved, None))
    write_identity(tmp_path / "run", moved, input_hashes(moved, None), None)
    (note,) = StepLines(tmp_path / "run" / CHANGES_FILE).read()
    images, pairs = "views.image_text.sources.images", "views.text_pair.sources.pairs"
    assert set(note["changed"]) == {"data.tokenizer", f"{images}.path", f"{pairs}.path"}
    write_pairs(tmp_path / "other-pairs", 61)
    other = with_pairs(moved, pairs=SourceConfig(path=str(tmp_path / "other-pairs")))
    assert refusal(tmp_path / "run", other, input_hashes(other, None)) == [f"{pairs}.path"]
    same = SourceConfig(path=str(tmp_path / "moved-pairs"))
    both = with_pairs(moved, pairs=same, again=same)
    found = refusal(tmp_path / "run", both, {**inputs, **input_hashes(both, None)})
    assert sorted(found) == [f"views.text_pair.sources.again.{name}" for name in ("path", "repeat")]


def test_features_of_a_teacher_may_move_but_not_change(config: RunConfig, tmp_path: Path) -> None:
    folder, key = tmp_path / "run", "views.text_pair.teacher.path"
    write_teacher(tmp_path / "teacher", [tmp_path / "pairs"])
    taught = with_teacher(config, path=str(tmp_path / "teacher"), width=WIDTH)
    inputs = start(folder, taught)
    moved = with_teacher(config, path=str(shutil.move(tmp_path / "teacher", tmp_path / "moved")), width=WIDTH)
    check_same_run(folder, moved, input_hashes(moved, None))
    lighter = with_teacher(config, path=str(tmp_path / "moved"), width=WIDTH, weight=0.5)
    assert refusal(folder, lighter, inputs) == ["views.text_pair.teacher.weight"]
    write_teacher(tmp_path / "other", [tmp_path / "images"])
    other = with_teacher(config, path=str(tmp_path / "other"), width=WIDTH)
    assert refusal(folder, other, input_hashes(other, None)) == [key]
    assert key in refusal(folder, config, input_hashes(config, None)), "none any more"


def with_teacher(config: RunConfig, **teacher: Any) -> RunConfig:
    view = replace(config.views["text_pair"], teacher=TeacherConfig(**teacher))  # type: ignore[call-arg]
    return replace(config, views={**config.views, "text_pair": view})


def with_pairs(config: RunConfig, **sources: SourceConfig) -> RunConfig:
    return replace(config, views={**config.views, "text_pair": replace(config.views["text_pair"], sources=sources)})


def test_inputs_of_an_older_version_stand_under_their_paths(config: RunConfig, tmp_path: Path) -> None:
    inputs = start(tmp_path / "run", config, {"stage": 3})
    old = {
        str(tmp_path / "tokenizer" / "tokenizer.json"): inputs["data.tokenizer"],
        str(tmp_path / "images" / "manifest.json"): inputs["views.image_text.sources.images.path"],
        str(tmp_path / "pairs" / "manifest.json"): inputs["views.text_pair.sources.pairs.path"],
        "DeepSpeed JSON": inputs["deepspeed"],
    }
    (tmp_path / "run" / "inputs.json").write_text(json.dumps(old))
    check_same_run(tmp_path / "run", config, inputs)
    assert refusal(tmp_path / "run", config, {**inputs, "views.text_pair.sources.pairs.path": "x"}) == [
        "views.text_pair.sources.pairs.path"
    ]


def test_a_start_that_failed_before_its_first_checkpoint_leaves_the_folder_to_the_next(
    config: RunConfig, tmp_path: Path
) -> None:
    write_identity(tmp_path / "run", config, input_hashes(config, None), None)
    other = replace(config, seed=8)
    check_same_run(tmp_path / "run", other, input_hashes(config, None))
    write_identity(tmp_path / "run", other, input_hashes(config, None), None)
    assert read_run_config(tmp_path / "run").seed == 8 and not (tmp_path / "run" / CHANGES_FILE).exists()


def test_ranks_and_clipping_are_not_compared_twice(config: RunConfig) -> None:
    of_one = {"zero_optimization": {"stage": 3}, "train_batch_size": 8, "train_micro_batch_size_per_gpu": 8}
    of_two = {**of_one, "train_micro_batch_size_per_gpu": 4, "gradient_clipping": 0.5}
    assert input_hashes(config, of_one) == input_hashes(config, of_two)


def test_a_bf16_run_from_before_sums_had_a_type_goes_on_by_saying_bf16(config: RunConfig) -> None:
    rough, rules = replace(config, precision="bf16"), {"bf16": {"enabled": True}}
    said = {**rules, "communication_data_type": "bf16", "data_types": {"grad_accum_dtype": "bf16"}}
    exact = {**rules, "communication_data_type": "fp32", "data_types": {"grad_accum_dtype": "fp32"}}
    assert input_hashes(rough, rules) == input_hashes(rough, said) != input_hashes(rough, exact)


@pytest.mark.parametrize("name", ["config.yaml", "inputs.json"])
def test_half_a_file_is_named(config: RunConfig, tmp_path: Path, name: str) -> None:
    inputs = start(tmp_path / "run", config)
    (tmp_path / "run" / name).write_text('{"a": [1, ')
    with pytest.raises(CheckpointError) as caught:
        check_same_run(tmp_path / "run", config, inputs)
    assert caught.value.where == str(tmp_path / "run" / name) and "Put the file back" in caught.value.do


def test_engine_precision_and_deepspeed_json_may_change_and_are_noted(config: RunConfig, tmp_path: Path) -> None:
    folder, old = tmp_path / "run", {"zero_optimization": {"stage": 3, "reduce_bucket_size": 5}, "train_batch_size": 8}
    start(folder, config, old)
    new = {"zero_optimization": {"stage": 1, "overlap_comm": True}, "train_batch_size": 4}
    other = replace(config, precision="bf16")
    check_same_run(folder, other, input_hashes(other, new))
    write_identity(folder, other, input_hashes(other, new), new)
    (note,) = StepLines(folder / CHANGES_FILE).read()
    assert note["changed"] == {
        "precision": ["fp32", "bf16"],
        "deepspeed.zero_optimization.stage": [3, 1],
        "deepspeed.zero_optimization.reduce_bucket_size": [5, None],
        "deepspeed.zero_optimization.overlap_comm": [None, True],
    }
    plain = replace(other, engine="plain")
    check_same_run(folder, plain, input_hashes(plain, None))


def test_changed_shards_are_another_run(config: RunConfig, tmp_path: Path) -> None:
    before = input_hashes(config, None)
    manifest = tmp_path / "pairs" / "manifest.json"
    document = json.loads(manifest.read_text(encoding="utf-8"))
    document["shards"][0]["sha256"] = "0" * 64
    manifest.write_text(json.dumps(document), encoding="utf-8")
    after = input_hashes(config, None)
    assert {name for name in before if before[name] != after[name]} == {"views.text_pair.sources.pairs.path"}
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
    inputs = start(tmp_path / "run", first)
    assert input_hashes(second, None) == inputs and identity_parts(second, inputs) == identity_parts(first, inputs)
    check_same_run(tmp_path / "run", second, inputs)
    renamed = {"pictures": two["images"], "again": two["again"]}
    third = replace(first, views={**views, "image_text": replace(config.views["image_text"], sources=renamed)})
    found = refusal(tmp_path / "run", third, inputs)
    assert {"views.image_text.sources.images.path", "views.image_text.sources.pictures.path"} <= set(found)


def test_shard_sets_that_are_measured_may_not_change(tmp_path: Path) -> None:
    config = as_config(settings_of(tmp_path, dev_sets={"same": str(tmp_path / "test")}))
    config = replace(config, optimizer=replace(config.optimizer, total_steps=5))
    folder, inputs = tmp_path / "run", start(tmp_path / "run", config)
    assert {"finetune.dev_sets.same", "finetune.test_sets.uneven"} < set(inputs)
    older = {key: value for key, value in inputs.items() if not key.startswith("finetune")}
    check_same_run(folder, config, older)
    changed = {**inputs, "finetune.test_sets.uneven": "another"}
    assert refusal(folder, config, changed) == ["finetune.test_sets.uneven"]


def test_annotation_files_that_are_measured_are_inputs_and_nothing_beside_them(tmp_path: Path) -> None:
    hashes = []
    for number, (name, text) in enumerate({"notes.txt": "mine", "xFlickrCO/annotations/de/test.jsonl": ""}.items()):
        data = stand_in("xflickrco", tmp_path / str(number))
        config = as_config(
            settings_of(tmp_path, data=str(data), dev_sets={"xflickrco": "."}, test_sets={"xflickrco": "."})
        )
        before = input_hashes(config, None)
        assert {"finetune.dev_sets.xflickrco", "finetune.test_sets.xflickrco"} < set(before)
        (data / name).write_text(text or '{"img_path": "red_box.png", "sentences": ["rot"]}', encoding="utf-8")
        retrieval_sets._asked.cache_clear()
        after = input_hashes(config, None)
        hashes.append({key for key in before if before[key] != after[key]})
    assert hashes == [set(), {"finetune.test_sets.xflickrco"}]


def test_missing_tokenizer(config: RunConfig, tmp_path: Path) -> None:
    (tmp_path / "tokenizer" / "tokenizer.json").unlink()
    with pytest.raises(ConfigError, match=r"a tokenizer folder with tokenizer\.json, got no .*tokenizer\.json"):
        input_hashes(config, None)
