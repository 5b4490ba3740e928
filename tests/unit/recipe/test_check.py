"""What a login node finds out about a recipe before a job is queued."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from cclm.errors import ConfigError, Problem
from cclm.recipe.check import CheckedRecipe, check_recipe
from tests.tiny_config import run_config
from tests.tiny_finetune import alone, stand_in, write_tokenizer
from tests.tiny_run import recipe, with_regions, write_corpus, write_recipe
from tests.tiny_teacher import WIDTH, write_teacher


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"))


def check(tmp_path: Path, settings: dict[str, Any], *overrides: str, world_size: int = 1) -> CheckedRecipe:
    path = write_recipe(tmp_path / "recipe.yaml", settings)
    return check_recipe(["--recipe", str(path), *overrides], world_size=world_size)


def refusal(tmp_path: Path, settings: dict[str, Any], *overrides: str, world_size: int = 1) -> dict[str, Problem]:
    with pytest.raises(ConfigError) as caught:
        check(tmp_path, settings, *overrides, world_size=world_size)
    return {problem.key: problem for problem in caught.value.problems}


def test_a_good_recipe_passes_without_a_note(tmp_path: Path, corpus: Path) -> None:
    checked = check(tmp_path, with_regions(recipe(corpus, tmp_path / "run"), corpus), world_size=2)
    assert checked.notes == () and checked.config.steps == 12
    assert not (tmp_path / "run").exists()


def test_what_another_job_makes_first_is_left_to_the_start(tmp_path: Path, corpus: Path) -> None:
    settings = recipe(corpus, tmp_path / "run")
    settings["views"]["image_text"]["sources"] = {"later": {"path": str(tmp_path / "later")}}
    settings["data"]["tokenizer"] = str(tmp_path / "later/tokenizer")
    path = write_recipe(tmp_path / "recipe.yaml", settings)
    assert check_recipe(["--recipe", str(path)], files_exist=False).notes == ()
    with pytest.raises(ConfigError):
        check_recipe(["--recipe", str(path)])


def test_ranks_against_negative_groups_and_engine(tmp_path: Path, corpus: Path) -> None:
    settings = recipe(corpus, tmp_path / "run")
    found = refusal(tmp_path, settings, world_size=17)
    assert set(found) == {"views.image_text.batch_size", "views.text_pair.batch_size"}
    assert "each of 17 ranks needs a row" in found["views.text_pair.batch_size"]
    assert set(refusal(tmp_path, settings, "--engine", "plain", world_size=2)) == {"engine"}


def test_sets_tokenizer_and_deepspeed_json_are_looked_at_together(tmp_path: Path, corpus: Path) -> None:
    settings = recipe(corpus, tmp_path / "run")
    settings["data"]["tokenizer"] = str(tmp_path / "no-tokenizer")
    paths = {"a": corpus / "images", "b": corpus / "pairs", "c": tmp_path / "none"}
    settings["views"]["image_text"]["sources"] = {name: {"path": str(path)} for name, path in paths.items()}
    (tmp_path / "ds.json").write_text(
        '{"zero_optimisation": {"stage": 3},\n "steps_per_print": 1,\n "steps_per_print": 2}'
    )
    found = refusal(tmp_path, {**settings, "deepspeed": str(tmp_path / "ds.json")})
    assert set(found) == {
        *("views.image_text.sources.b.path", "views.image_text.sources.c.path", "data.tokenizer", "steps_per_print"),
    }
    assert "expected a set of view image_text, got one of view text_pair" in found["views.image_text.sources.b.path"]
    lines = (tmp_path / "recipe.yaml").read_text().splitlines()
    line = next(number for number, text in enumerate(lines, 1) if text.endswith(str(tmp_path / "none")))
    assert found["views.image_text.sources.c.path"].place == f"{tmp_path}/recipe.yaml:{line}"
    (tmp_path / "ds.json").write_text('{\n "zero_optimisation": {"stage": 3},\n "gradient_clipping": 0.25}')
    found = refusal(tmp_path, {**settings, "deepspeed": str(tmp_path / "ds.json")})
    assert "nearest zero_optimization" in found["zero_optimisation"] and "line 2" in found["zero_optimisation"]
    assert "expected 1.0" in found["gradient_clipping"]


def test_the_files_of_a_teacher_are_looked_at(tmp_path: Path, corpus: Path) -> None:
    settings, key = recipe(corpus, tmp_path / "run"), "views.text_pair.teacher.path"
    settings["views"]["text_pair"]["teacher"] = {"path": str(tmp_path / "teacher"), "width": WIDTH}
    assert refusal(tmp_path, settings)[key].partition(f"{key}: ")[2] == (
        "expected a folder with Parquet files of features, got nothing there"
    )
    path = write_recipe(tmp_path / "recipe.yaml", settings)
    assert check_recipe(["--recipe", str(path)], files_exist=False).notes == ()
    write_teacher(tmp_path / "teacher", [corpus / "pairs"])
    assert check(tmp_path, settings).notes == ()
    wrong = refusal(tmp_path, settings, "--views.text_pair.teacher.width", "25")
    assert f"expected features of 25 numbers (teacher.width), got of {WIDTH}" in wrong[key]
    assert set(refusal(tmp_path, settings, "--views.text_pair.teacher.form", "cosin")) == {
        "views.text_pair.teacher.form"
    }


def test_a_damaged_manifest_is_found(tmp_path: Path, corpus: Path) -> None:
    (tmp_path / "images").mkdir()
    document = json.loads((corpus / "images" / "manifest.json").read_text(encoding="utf-8"))
    document["shards"][0]["samples"] += 1
    (tmp_path / "images" / "manifest.json").write_text(json.dumps(document))
    settings = recipe(corpus, tmp_path / "run")
    settings["views"]["image_text"]["sources"] = {"images": {"path": str(tmp_path / "images")}}
    assert "totals" in refusal(tmp_path, settings)["views.image_text.sources.images.path"]


def test_a_batch_above_the_sets_size_is_said(tmp_path: Path, corpus: Path) -> None:
    settings = recipe(corpus, tmp_path / "run")
    settings["views"]["image_text"] |= {"batch_size": 104, "matching_rows": 104}
    (note,) = check(tmp_path, settings).notes
    assert note.startswith("views.image_text: a step takes 104 samples, but its sets hold only 96")


def test_what_lies_elsewhere_is_left_to_the_start(tmp_path: Path, corpus: Path) -> None:
    settings = recipe(corpus, tmp_path / "run")
    settings["data"]["tokenizer"] = "nobody/has-this-model"
    settings["views"]["image_text"]["sources"] = {"images": {"path": "s3://nowhere/images"}}
    assert check(tmp_path, settings).notes == ()


def test_a_shipped_deepspeed_json_is_found_from_any_folder(
    tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = recipe(corpus, tmp_path / "run")
    for name in ("zero3_fp32", "ds_configs/zero3_fp32.json"):
        check(tmp_path, {**settings, "deepspeed": name})
    assert check(tmp_path, settings).config.deepspeed == "ds_configs/zero3_cpu.json", "the default"
    found = refusal(tmp_path, {**settings, "deepspeed": "zero3_fp23"})
    assert "did you mean zero3_fp32?" in found["deepspeed"]


def test_a_name_that_no_file_system_takes_is_a_problem(tmp_path: Path, corpus: Path) -> None:
    long = "x" * 5000
    settings = recipe(corpus, tmp_path / "run", deepspeed=long)
    settings["data"]["tokenizer"] = f"./{long}"
    settings["views"]["image_text"]["sources"] = {"images": {"path": long}}
    assert set(refusal(tmp_path, settings)) == {"deepspeed", "data.tokenizer", "views.image_text.sources.images.path"}


def test_types_and_what_is_named_come_in_turn(tmp_path: Path, corpus: Path) -> None:
    settings = recipe(corpus, tmp_path / "run")
    settings["views"]["image_text"]["sources"] = {"images": {"path": str(tmp_path / "none")}}
    assert set(refusal(tmp_path, settings, "--seed", "x")) == {"seed"}
    assert set(refusal(tmp_path, recipe(corpus, tmp_path / "run"), "--views", "{}")) == {"views"}


def test_a_recipe_is_read_in_a_moment_and_checked_in_a_second_without_torch(tmp_path: Path, corpus: Path) -> None:
    path = write_recipe(tmp_path / "recipe.yaml", recipe(corpus, tmp_path / "run"))
    code = (
        "import sys, time\n"
        "from cclm.recipe.read import read_recipe\n"
        f"read_recipe(['--recipe', {str(path)!r}, '--seed', '3'])\n"
        "read = time.process_time()\n"
        "heavy = {'torch', 'transformers', 'deepspeed', 'numpy', 'pyarrow', 'PIL', 'tokenizers'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "from cclm.recipe.check import check_recipe\n"
        f"check_recipe(['--recipe', {str(path)!r}], world_size=2)\n"
        "assert not {'torch', 'transformers', 'deepspeed'} & set(sys.modules)\n"
        "print(read, time.process_time())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    read, checked = map(float, done.stdout.split())
    assert read < 0.6 and checked < 2.0, "CPU seconds with the interpreter's start; 0.25 and 0.6 on a quiet machine"


def test_sets_that_retrieval_is_measured_on_are_looked_for(tmp_path: Path) -> None:
    settings = alone(stand_in("xvnli", tmp_path / "data"), tmp_path)
    write_tokenizer(tmp_path)
    (tmp_path / "sets" / "there").mkdir(parents=True)
    settings["finetune"] |= {
        "data": str(tmp_path / "sets"),
        "dev_sets": {"flickr30k": "there", "far": "s3://bucket/set"},
        "test_sets": {"wit": "nowhere"},
    }
    with pytest.raises(ConfigError) as caught:
        check_recipe(["--recipe", str(write_recipe(tmp_path / "recipe.yaml", settings))])
    (problem,) = caught.value.problems
    assert problem.key == "finetune.test_sets.wit"


def test_languages_that_no_set_has_are_found_without_torch(tmp_path: Path, corpus: Path) -> None:
    settings = recipe(corpus, tmp_path / "run")
    view, key = settings["views"]["image_text"], "views.image_text.sources.images.path"
    view["languages"] = ["fr", "xx"]
    assert refusal(tmp_path, settings)[key].endswith(f"expected texts in fr or xx, got none in {corpus / 'images'}")
    view["languages"] = ["en", "xx"]
    assert check(tmp_path, settings).notes == ("views.image_text: none of its sets has texts in xx.",)
    view["languages"], sources = ["fr"], view["sources"]
    view["sources"] = {"images": {**sources["images"], "weight": 0}, "others": {**sources["images"], "weight": 1}}
    assert set(refusal(tmp_path, settings)) == {"views.image_text.sources.others.path"}, "nothing is drawn from images"
    view["sources"] = sources
    stages = [{"start_step": 3, "language_weights": {"fr": 1, "en": 0}}]
    view |= {"languages": None, "mix": {"language_weights": {"en": 1}, "schedule": stages}}
    assert "expected texts in fr, got none" in refusal(tmp_path, settings)[key]


def test_so_many_workers_are_a_typo(tmp_path: Path, corpus: Path) -> None:
    found = refusal(tmp_path, recipe(corpus, tmp_path / "run"), "--data.num_workers", "4000")
    assert "between 0 and 512 or null, got 4000" in found["data.num_workers"]


def test_sets_that_a_run_is_measured_on_are_looked_at(tmp_path: Path, corpus: Path) -> None:
    sets = {"good": str(corpus / "images"), "gone": str(tmp_path / "gone"), "texts": str(corpus / "pairs")}
    evaluation = {"every_steps": 5, "sets": sets, "groups": {"far": ["fr"]}, "measure": "good/far/t2i_r10"}
    settings = recipe(corpus, tmp_path / "run", evaluation=evaluation)
    found = refusal(tmp_path, settings)
    assert set(found) == {f"evaluation.sets.{name}" for name in sets}
    assert "captions in fr, got none" in found["evaluation.sets.good"]
    assert "a set of view image_text" in found["evaluation.sets.texts"]
    evaluation |= {"sets": {"good": sets["good"], "far": "s3://bucket/set"}, "groups": {}, "measure": "good/fr/t2i_r1"}
    assert "captions in fr" in refusal(tmp_path, settings)["evaluation.sets.good"]
    evaluation["measure"] = "good/all/t2i_r1"
    assert check(tmp_path, settings).notes == ()


@pytest.mark.parametrize(
    ("evaluation", "key", "words"),
    [
        ({"sets": {}}, "evaluation.sets", "none is given"),
        ({"measure": "good/all/t2i_r2"}, "evaluation.measure", "expected good, all or a language and mean_recall"),
        ({"measure": "better/all/t2i_r1"}, "evaluation.measure", "expected good"),
        ({"measure": "good/all/reranked_t2i_r1"}, "evaluation.measure", "expected good"),
        ({"groups": {"all": ["en"]}}, "evaluation.groups.all", "neither all nor that of a language"),
        ({"groups": {"x": []}}, "evaluation.groups.x", "no language is given"),
        ({"every_steps": 0}, "evaluation.every_steps", "at least 1"),
    ],
)
def test_an_evaluation_that_cannot_be_is_refused(
    tmp_path: Path, corpus: Path, evaluation: dict[str, Any], key: str, words: str
) -> None:
    whole = {"every_steps": 5, "sets": {"good": str(corpus / "images")}, **evaluation}
    found = refusal(tmp_path, recipe(corpus, tmp_path / "run", evaluation=whole))
    assert words in found[key]


def test_the_evaluation_that_the_docs_show_is_one() -> None:
    page = Path("docs/recipes.md").read_text(encoding="utf-8").partition("## Zero-shot retrieval while it trains")[2]
    shown = run_config(**yaml.safe_load(page.partition("```yaml")[2].partition("```")[0])).evaluation
    assert shown is not None and shown.measure == "flickr/far/t2i_r10" and set(shown.sets) == {"emoji", "flickr"}
    names = [name for name in (*shown.numbers, "all") if f"`{name}`" not in page]
    assert names == [], "the page names every number"


def test_copies_need_a_url(tmp_path: Path, corpus: Path) -> None:
    found = refusal(tmp_path, recipe(corpus, tmp_path / "run", checkpoint={"copy_to": "/mnt/store"}))
    assert "a URL, such as s3://bucket/prefix" in found["checkpoint.copy_to"]


@pytest.mark.parametrize("is_installed", [True, False])
def test_a_missing_peft_is_said_before_a_job_is_queued(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_installed: bool
) -> None:
    """As a note: the container that the ranks run in may have it."""
    monkeypatch.setattr("cclm.recipe.check.find_spec", lambda name: name if is_installed else None)
    write_tokenizer(tmp_path)
    settings = alone(stand_in("xvnli", tmp_path / "data"), tmp_path)
    assert check(tmp_path, settings).notes == ()
    settings["finetune"]["lora"] = {"rank": 2}
    assert ["cclm-pretraining[lora]" in note for note in check(tmp_path, settings).notes] == [True] * (not is_installed)
    settings["finetune"]["epochs"] = 0
    assert check(tmp_path, settings).notes == ()


def test_what_copies_and_a_deterministic_mode_need_is_said(
    tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = recipe(corpus, tmp_path / "run", checkpoint={"copy_to": "s3://bucket/run"}, deterministic=True)
    monkeypatch.setattr("cclm.recipe.check.find_spec", lambda name: None if name == "s3fs" else name)
    slower, missing = check(tmp_path, settings).notes
    assert slower.startswith("deterministic: a GPU is slower")
    assert missing == "checkpoint.copy_to: it needs the package s3fs, which is not installed here."
