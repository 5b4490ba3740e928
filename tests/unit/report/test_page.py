from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml

from cclm.cli.__main__ import main
from cclm.errors import ConfigError
from cclm.report.facts import Stage, read_facts, read_stages
from cclm.report.page import language_name, licence_link, report_page, temperature_note, trained_where
from cclm.run.checkpoints import CheckpointFacts
from cclm.types import View
from tests.tiny_config import run_config, run_values

GROUPS = {"english": ["en"], "parallel_non_latin": ["ar", "zh"], "control": ["xx"]}
VIEWS = {"image_text": "image-train", "text_pair": "text-train"}
PIXEL = "data:image/png;base64,iVBORw0KGgo="


def recall(scale: float) -> dict[str, dict[str, float]]:
    return {way: {"r1": 10 * scale, "r5": 30 * scale, "r10": 40 * scale} for way in ("t2i", "i2t")}


def results() -> dict[str, Any]:
    languages = {"en": recall(1.5), "ar": recall(1.0), "zh": recall(1.2), "xx": recall(0.1)}
    groups = {"english": recall(1.5), "parallel_non_latin": recall(1.1), "control": recall(0.1)}
    chance = {"r1": 0.06, "r5": 0.32, "r10": 0.63}
    return {
        "chance": {"t2i": chance, "i2t": chance},
        "members": GROUPS,
        "groups": groups,
        "languages": languages,
        "standard_error": {"groups": {name: recall(0.05) for name in groups}, "languages": {}},
        "reranked": {
            "top_k": 8,
            "rule": {"match_weight": 0.35, "similarity_weight": 1.0},
            "groups": {name: recall(1.234) for name in groups},
            "languages": {name: recall(1.234) for name in languages},
        },
        "reranked_not_chosen": {
            "match_alone": {
                "top_k": 8,
                "rule": {"match_weight": 1.0, "similarity_weight": 0.0},
                "groups": {name: recall(0.432) for name in groups},
                "languages": {name: recall(0.432) for name in languages},
            }
        },
        "matching": {
            "prior": {"accuracy": 66.67, "loss": 0.63651},
            "languages": {"en": {"hard": {"accuracy": 77.9, "loss": 0.48}}},
        },
        "set": {"shards": "SETS/image-test", "num_images": 1579},
        "dev": {"set": {"shards": "SETS/image-dev", "num_images": 886}},
        "model": {"num_parameters": 2_991_219, "checkpoint": "a1"},
        "seconds": {"evaluate": 40.0},
    }


def write_manifest(folder: Path, view: str, licences: dict[str, int]) -> str:
    folder.mkdir(parents=True)
    totals = {
        "samples": 1200, "rows": 3400, "size_bytes": 5_600_000, "shards": 1,
        "languages": {"en": 3400}, "sources": {"noto": 1200}, "licences": licences,
    }  # fmt: skip
    shards = [{"sha256": f"hash of {folder.name}"}]
    content = {"view": view, "totals": totals, "shards": shards, "command": "python -m shards build <demo>"}
    (folder / "manifest.json").write_text(json.dumps(content))
    return str(folder)


def write_config(folder: Path, views: dict[str, Any] | None = None, **blocks: Any) -> None:
    (folder / "config.yaml").write_text(yaml.safe_dump(run_values(views=views, **blocks)), encoding="utf-8")


def reading(folder: str) -> dict[str, Any]:
    return {"sources": {"it": {"path": folder}}}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder with everything in it."""
    folder = tmp_path / "demo"
    folder.mkdir()
    images = write_manifest(tmp_path / "image-train", "image_text", {"Apache-2.0": 1000, "Odd-1.0": 200})
    pairs = write_manifest(tmp_path / "text-train", "text_pair", {"Unicode-3.0": 1200})
    write_config(folder, {"image_text": reading(images), "text_pair": reading(pairs)})
    (folder / "results.json").write_text(json.dumps(results()))
    gallery = [
        {"language": "ar", "text": "وجه كلب", "meaning": "dog face", "rank": 2,
         "images": [{"uri": PIXEL, "right": False}, {"uri": PIXEL, "right": True}]},
        {"language": "en", "text": "<script>", "meaning": "", "rank": 1600,
         "images": [{"uri": PIXEL, "right": False}]},
    ]  # fmt: skip
    (folder / "gallery.json").write_text(json.dumps(gallery))
    parity = {"max_abs": 4.2e-7, "tolerance": 1e-4, "num_images": 8, "num_texts": 16, "checkpoint": "a1"}
    (folder / "parity.json").write_text(json.dumps(parity))
    stages = [{"name": "train", "command": "python -m pretrain", "seconds": 611.3, "finished": True}]
    (folder / "stages.json").write_text(json.dumps(stages))
    (folder / "environment.json").write_text('{"machine": "some processor", "cores": "2", "torch": "2.13.0"}')
    values = {"image_text/itc": 4.0, "image_text/itm_accuracy": 0.7, "temperature": 0.05, "speed/step_s": 0.3}
    values |= {"learning_rate/decay": 1e-3, "image_text/itm": None}
    lines = [{"step": step, "time": 0.0, "values": {"loss": 9 - step / 300, **values}} for step in range(0, 1700, 100)]
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


class Checker(HTMLParser):
    """Every tag is closed in order, and what is loaded or linked is collected."""

    VOID = ("meta", "img", "br", "line", "rect", "path", "polyline")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.sources: list[str] = []
        self.words: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.sources += [value or "" for name, value in attrs if name in ("src", "srcset", "data")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.words.append(data)


def read(page: str) -> Checker:
    checker = Checker()
    checker.feed(page)
    checker.close()
    assert checker.open == []
    return checker


def text_of(page: str) -> str:
    return " ".join(" ".join(read(page).words).split())


def test_page_is_well_formed_and_loads_nothing_from_outside(run: Path) -> None:
    page = report_page(run)
    assert all(source.startswith("data:") for source in read(page).sources)
    assert "<link" not in page and "<script" not in page and "@import" not in page and "url(" not in page


def test_a_line_of_the_log_without_values_is_told(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with (run / "log.jsonl").open("a") as file:
        file.write('{"step": 99999, "time": 1.0}\n')
    assert main(["report", str(run)]) == 0
    assert "note: 1 line(s) of log.jsonl cannot be read" in capsys.readouterr().out


def test_headline_numbers_stand_at_the_top(run: Path) -> None:
    words = text_of(report_page(run))
    assert "60.0 % English" in words and "95 × chance" in words
    assert "44.0 % Parallel text only, non-Latin scripts" in words
    assert "3.0 M parameters" in words and "10.2 min training 2 cores, some processor" in words
    assert "4 languages" in words and "sentences with translations" in words


def test_steps_are_the_checkpoints(run: Path) -> None:
    words = text_of(report_page(run, CheckpointFacts(step=1500, identity="a1")))
    assert "1,500 steps from scratch" in words and "60.0 % English" in words and "4.2e-07" in words


def test_results_and_proof_of_another_checkpoint_count_as_none(run: Path) -> None:
    words = text_of(report_page(run, CheckpointFacts(step=1725, identity="b2")))
    assert "This checkpoint was not measured yet" in words and "60.0 %" not in words
    assert "Gallery" not in words and "4.2e-07" not in words


def test_without_parallel_text_none_is_claimed(run: Path) -> None:
    write_config(run, {"image_text": reading(str(run.parent / "image-train")), "text_pair": None})
    words = text_of(report_page(run))
    assert "on images with captions alone (no parallel text)" in words and "sentences with translations" not in words
    assert "Non-Latin scripts (no parallel text in this run)" in words and "Parallel text only" not in words


def test_recall_stands_beside_chance_and_reranked_below(run: Path) -> None:
    words = text_of(report_page(run))
    assert re.search(r"English 15\.0 ±0\.5 45\.0 ±1\.5 60\.0 ±2\.0 95 ×", words)
    assert "re-ranked 12.3 37.0 49.4" in words
    assert "chance 0.06 0.32 0.63" in words
    assert "8 best pairs" in words and "0.35 · log-odds" in words and "chosen on the dev set" in words
    assert "not chosen: match alone, as published 4.3 13.0 17.3" in words


def test_the_marks_show_a_rule_that_changes_the_order(run: Path) -> None:
    assert "R@1 re-ranked chance at" in text_of(report_page(run))
    content = results()
    content["reranked"]["rule"]["match_weight"] = 0.0
    (run / "results.json").write_text(json.dumps(content))
    page = report_page(run)
    words = text_of(page)
    assert "R@1 not chosen: match alone, as published chance at" in words
    assert "12.3 37.0 49.4" not in words, "it would repeat the dual encoder"
    assert "gave its score the weight 0: the dual encoder's order stands." in words.replace("&#39;", "'")
    del content["reranked_not_chosen"]  # an older file
    (run / "results.json").write_text(json.dumps(content))
    words = text_of(report_page(run))
    assert "re-ranked" not in words and "weight 0" in words


def test_unknown_languages_and_groups_show_their_own_names(run: Path) -> None:
    assert language_name("xx") == "xx" and language_name("sw") == "Swahili"
    content = results()
    for table in ("groups", "members"):
        content[table]["my_group"] = content[table].pop("control") if table == "groups" else ["xx"]
    (run / "results.json").write_text(json.dumps(content))
    assert "my group" in text_of(report_page(run))


def test_gallery_marks_the_right_picture_and_escapes_texts(run: Path) -> None:
    page = report_page(run)
    assert page.count('<figure class="right">') == 1
    assert 'lang="ar" dir="auto">وجه كلب<' in page
    assert "&lt;script&gt;" in page and "<script>" not in page
    assert "place 1,600" in text_of(page)


def test_matching_head_against_its_prior(run: Path) -> None:
    words = text_of(report_page(run))
    assert "66.7 % and a loss of 0.637" in words
    assert "English, hard wrong pairs 77.9 +11.2 0.480 +0.157" in words


def test_curves_by_view_only_for_what_was_logged(run: Path) -> None:
    words = text_of(report_page(run))
    assert "ITC loss" in words and "Temperature" in words and "Seconds per step" in words
    assert "TTC loss" not in words and "Text–text view" not in words
    assert "nothing logged" in words, "ITM was logged, but never as a finite number"


def test_what_was_measured_in_training_has_curves(run: Path) -> None:
    with (run / "config.yaml").open("a") as config:
        config.write("evaluation: {every_steps: 9, sets: {mine: somewhere}}\n")
    with (run / "log.jsonl").open("a") as log:
        for group in ("all", "en"):
            values = {"evaluation": 3.0, f"evaluation/mine/{group}/t2i_r10": 41.0}
            log.write(json.dumps({"step": 1700, "time": 0.0, "values": values}) + "\n")
    words = text_of(report_page(run))
    assert "Zero-shot retrieval while it trained" in words and "mine, text → image" in words
    assert "mine, image → text" not in words, "it was not logged"


def test_regions_have_curves_of_their_own(run: Path) -> None:
    with (run / "log.jsonl").open("a") as log:
        for step in range(1700, 2000, 100):
            values = {
                "loss": 3.0,
                "regions/itc": 2.0,
                "regions/box": 0.4,
                "regions/giou": 0.7,
                "regions/mlm_accuracy": 0.5,
            }
            log.write(json.dumps({"step": step, "time": 0.0, "values": values}) + "\n")
    words = text_of(report_page(run))
    assert "Regions" in words and "Box losses" in words and "1 − GIoU" in words
    assert words.count("ITC loss") == 2, "of images and of regions"


def test_data_card_names_sources_licences_and_command(run: Path) -> None:
    page = report_page(run)
    words = text_of(page)
    assert "1,200 images, 3,400 captions, 5.6 MB" in words and "1,200 sentences, 3,400 sentence pairs" in words
    assert "https://www.apache.org/licenses/LICENSE-2.0" in page and "Odd-1.0" in words
    assert "python -m shards build &lt;demo&gt;" in page


def test_reproduction_facts(run: Path) -> None:
    words = text_of(report_page(run))
    assert "seed 42" in words and "torch 2.13.0" in words and "4.2e-07" in words and "10:11" in words
    assert "some processor" in words, "the machine of the training, not the one that renders"


def test_a_run_that_was_not_measured_has_a_page_too(tmp_path: Path) -> None:
    write_config(tmp_path)
    words = text_of(report_page(tmp_path))
    assert "not measured yet" in words and "Zero-shot retrieval" not in words and "Gallery" not in words


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expected a run folder"):
        read_facts(tmp_path)
    (tmp_path / "config.yaml").write_text("[1, 2]")
    with pytest.raises(ConfigError, match="got line 1: expected a mapping, got a list"):
        read_facts(tmp_path)
    (tmp_path / "config.yaml").write_text("a: [")
    with pytest.raises(ConfigError, match="got line 2: broken YAML"):
        read_facts(tmp_path)


def test_stages_with_commands_win_over_bare_seconds(tmp_path: Path) -> None:
    assert read_stages(tmp_path, {"seconds": {"evaluate": 3.0}}) == [Stage(name="evaluate", command="", seconds=3.0)]
    (tmp_path / "stages.json").write_text('[{"name": "train", "command": "python -m pretrain", "seconds": 5.0}]')
    assert read_stages(tmp_path, {}) == [Stage(name="train", command="python -m pretrain", seconds=5.0)]


def test_sets_come_with_their_roles(run: Path) -> None:
    facts = read_facts(run)
    assert [one.role for one in facts.sets] == ["trained on"] * 2, "the others are not at hand"
    assert [one.read_by for one in facts.sets] == ["image_text", "text_pair"]
    assert [one.tar_hashes for one in facts.sets] == [{"hash of image-train"}, {"hash of text-train"}]
    assert facts.languages_of(View.IMAGE_TEXT) == facts.languages_of(View.TEXT_PAIR) == {"en"}
    assert facts.steps is None


def test_what_the_page_says_depends_on_start_data_and_objectives(run: Path) -> None:
    assert "not known here" in text_of(report_page(run)), "the test set is not at hand"
    measured = Path(write_manifest(run.parent / "image-test", "image_text", {}))
    content = results()
    content["set"]["shards"] = str(measured)
    (run / "results.json").write_text(json.dumps(content))
    sets = {view: reading(str(run.parent / name)) for view, name in VIEWS.items()}
    objectives = {"hardness": 0.3, "hardness_start_step": 950, "hardness_full_step": 1900}
    write_config(run, sets, objectives=objectives, start={"sources": ["models/swin.pth"]})
    words = text_of(report_page(run))
    assert "trained from the weights of swin.pth:" in words and "scratch" not in words
    assert "zero-shot on another set of images than it was trained on" in words and "Zero-shot retrieval" in words
    assert "in training, negatives of hardness 0, from step 950 to 1,900 rising to 0.3" in words
    content["set"]["shards"] = str(run.parent / "image-train")
    (run / "results.json").write_text(json.dumps(content))
    words = text_of(report_page(run))
    assert "on images that it was trained on" in words and "ero-shot" not in words


def test_a_run_that_did_not_write_its_environment_has_an_unknown_one(tmp_path: Path) -> None:
    write_config(tmp_path)
    assert set(read_facts(tmp_path).environment.values()) == {"unknown"}
    (tmp_path / "done.json").write_text('{"step": 1, "seconds": 90.0, "time": 1.0}')
    words = text_of(report_page(tmp_path))
    assert "machine unknown versions unknown" in words and "1.5 min training" in words


def test_the_bounds_of_the_temperature_stand_beside_its_chart() -> None:
    bounds = run_config(model={"temperature_min": 0.05, "temperature_max": 0.5})
    assert temperature_note(bounds) == "learned, kept within 0.05 … 0.5"


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"machine": "unknown"}, ""),
        ({"cores": "1", "machine": "a box"}, "1 core, a box"),
        ({"ranks": "1", "cores": "2"}, "2 cores"),
        ({"ranks": "2", "cores": "1", "machine": "a box"}, "2 ranks, up to 1 core each, a box"),
        ({"ranks": "8", "cores": "1.5"}, "8 ranks, up to 1.5 cores each"),
    ],
)
def test_where_it_was_trained(environment: dict[str, str], words: str) -> None:
    assert trained_where(environment) == words


def test_an_unknown_licence_is_escaped_and_not_linked() -> None:
    assert licence_link("<Odd>") == "&lt;Odd&gt;"
    assert licence_link("MIT").startswith("<a href=")
