"""Galleries: what is chosen, what is confused with what, and a page in which nothing is anything but text."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from cclm.errors import ConfigError
from cclm.evaluate.results import Result, ResultStore, measured, write_predictions
from cclm.files.reading import to_yaml
from cclm.recipe.read import read_recipe
from finetune.__main__ import PROGRAM
from finetune.commands import run_command
from finetune.gallery import Answer, answers_of, galleries, hardest, surprises
from finetune.tasks.table import TASKS

RESULT = Result(
    model="mine", task="T", protocol="zero-shot", language="en", split="test", metric="", value=0.0, num_rows=0, seed=3,
)  # fmt: skip


def answer(name: str, language: str, goodness: float, **changes: Any) -> Answer:
    is_right = goodness > 0.5
    given: dict[str, Any] = {
        "id": name, "language": language, "text": f"{name} {language}", "meaning": name, "images": (),
        "truth": "true", "said": "true" if is_right else "false", "is_right": is_right, "goodness": goodness,
    }  # fmt: skip
    return Answer(**{**given, **changes})


def test_an_answer_surprises_that_differs_from_those_in_other_languages() -> None:
    same = [answer("cat", language, 0.9) for language in ("en", "de", "fr")]
    odd = [answer("dog", "en", 0.9), answer("dog", "de", 0.9), answer("dog", "fr", 0.1)]
    alone = [answer("owl", "fr", 0.6), answer("bat", "fr", 0.2)]
    found = surprises([*same, *odd, *alone])
    assert found["cat", "fr"] == pytest.approx(0.0) and found["dog", "fr"] == pytest.approx(0.8)
    assert found["owl", "fr"] == pytest.approx(0.4) and found["bat", "fr"] == 0.0


def test_each_language_has_its_best_worst_and_most_surprising_once() -> None:
    of_fr = {"a": 0.95, "b": 0.9, "c": 0.3, "d": 0.2, "e": 0.1}
    answers = [answer(name, "en", 0.9) for name in of_fr]
    answers += [answer(name, "fr", goodness) for name, goodness in of_fr.items()]
    english, french = galleries(answers, 1)
    assert (english.language, english.right, english.confusions) == ("en", 100.0, [])
    assert (french.num_answers, french.right, french.confusions) == (5, 40.0, [("true", "false", 3)])
    assert list(french.too_often) == [("false", 3)]
    assert {title: [one.id for one in some] for title, some in french.chosen} == {
        "best": ["a"], "worst": ["e"], "most surprising": ["d"],
    }  # fmt: skip


def test_the_hardest_concepts_come_first() -> None:
    answers = [answer("cat", "en", 0.9), answer("cat", "de", 0.2), answer("dog", "en", 0.1), answer("dog", "de", 0.3)]
    dog, cat = hardest(answers)
    assert (dog.name, dog.right, list(dog.never_right), list(dog.said)) == ("dog", 0.0, ["en", "de"], [("false", 2)])
    assert (cat.name, cat.right, list(cat.never_right)) == ("cat", 50.0, ["de"])


def make_run(
    folder: Path,
    recipe: str,
    settings: Mapping[str, Any],
    predictions: Mapping[str, tuple[str, str]],
    metric: str = "accuracy",
) -> Path:
    """A run's folder with its configuration, and results of predictions: language → (data file, kept file)."""
    folder.mkdir(exist_ok=True)
    words = [word for key, value in settings.items() for word in (f"--{key}", json.dumps(value))]
    own = ["--recipe", recipe, "--run_folder", str(folder), "--data.tokenizer", "none"]
    own += ["--model.vision.image_size", "224", "--model.text.max_positions", "80"]
    config = read_recipe([*words, *own], PROGRAM.recipes)
    (folder / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
    for language, (data_file, kept) in predictions.items():
        lines = [json.loads(line) for line in (folder / kept).read_text().splitlines()]
        digest = write_predictions(folder / kept, lines)
        common = replace(RESULT, language=language, data_file=data_file, predictions=kept, predictions_sha256=digest)
        metric = "t2i_r1" if "rank" in lines[0] else metric
        ResultStore(folder / "results.jsonl").append(measured(common, [metric], lines))
    return folder


def write_lines(path: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_predictions(path, lines)


@pytest.fixture
def statements(tmp_path: Path) -> Path:
    """A run that says "true" to all statements about drawn circles; one image has a name that is markup."""
    data, run = tmp_path / "data", tmp_path / "run"
    TASKS["marvl"].draw(data)
    files = {language: f"marvl/zero_shot/annotations/marvl-{language}.jsonl" for language in ("en", "zh")}
    for language, name in files.items():
        rows = [json.loads(line) for line in (data / name).read_text(encoding="utf-8").splitlines()]
        rows[0]["sentence"] = f"<script>alert('{language}')</script>"
        (data / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        lines = [{"id": row["id"], "label": int(row["label"]), "predicted": 1, "score": 0.75} for row in rows]
        write_lines(run / f"predictions/{language}.jsonl", lines)
    settings = {"views.classify.folder": str(data), "views.classify.test": files, "model.class_images": 2}
    kept = {language: (name, f"predictions/{language}.jsonl") for language, name in files.items()}
    return make_run(run, "marvl", settings, kept)


def test_statements_and_their_images(statements: Path) -> None:
    found = answers_of(statements)
    assert len(found.answers) == 2 * 27 and found.title == "T: mine (zero-shot), seed 3"
    chinese = next(one for one in found.answers if (one.id, one.language) == ("red-green-blue", "zh"))
    assert (chinese.text, chinese.meaning, chinese.concept) == ("蓝 圆", "blue circle", "blue circle")
    assert (chinese.truth, chinese.said, chinese.is_right, chinese.goodness) == ("false", "true", False, 0.25)
    assert [found.image(name)[:4] for name in chinese.images] == [b"\x89PNG"] * 2


class Tags(HTMLParser):
    """Counts the tags of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.counts = dict[str, int]()
        self.sources = list[str]()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.counts[tag] = self.counts.get(tag, 0) + 1
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]


def test_the_page_has_images_inside_and_no_markup_of_others(statements: Path, tmp_path: Path) -> None:
    run_command(["gallery", str(statements), "--to", str(tmp_path / "page.html"), "--number", "2"])
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    tags = Tags()
    tags.feed(page)
    assert "script" not in tags.counts and "&lt;script&gt;alert" in page
    assert tags.counts["details"] == 2 and tags.counts["img"] >= 16
    assert all(source.startswith("data:image/jpeg;base64,") for source in tags.sources)
    assert "false → true (18)" in page and "Chinese" in page
    run_command(["gallery", str(statements)])
    assert (statements / "gallery.html").is_file()


def test_retrieval_shows_the_right_image_and_the_first(tmp_path: Path) -> None:
    data, run = tmp_path / "data", tmp_path / "run"
    TASKS["retrieval"].draw(data)
    for language in ("en", "de"):
        lines = [
            {"id": "red_circle#0", "direction": "t2i", "rank": 0, "predicted": "red_circle"},
            {"id": "blue_box#0", "direction": "t2i", "rank": 3, "predicted": "red_box"},
            {"id": "blue_box", "direction": "i2t", "rank": 0, "predicted": "blue_box#0"},
        ]
        write_lines(run / f"predictions/own.shapes.{language}.jsonl", lines)
    settings = {"finetune.test_sets": {"own/shapes": str(data / "test")}}
    kept = {one: (str(data / "test"), f"predictions/own.shapes.{one}.jsonl") for one in ("en", "de")}
    found = answers_of(make_run(run, "retrieval", settings, kept))
    right, wrong = (one for one in found.answers if one.language == "de")
    assert (right.text, right.said, right.goodness, right.images) == ("rot Kreis", "red circle", 1.0, ("red_circle",))
    assert (wrong.truth, wrong.said, wrong.images) == ("blue box", "red box", ("blue_box", "red_box"))
    assert (wrong.goodness, wrong.note) == (0.25, "place 4")
    assert found.image("red_box").startswith(b"\x89PNG")


def test_a_run_without_results_and_other_data_are_refused(statements: Path, tmp_path: Path) -> None:
    rows = tmp_path / "data/marvl/zero_shot/annotations/marvl-zh.jsonl"
    rows.write_text("".join(rows.read_text().splitlines(keepends=True)[1:]))
    with pytest.raises(ConfigError) as caught:
        answers_of(statements)
    assert "red-red-red" in caught.value.expected
    (statements / "results.jsonl").write_text("")  # of test sets whose answers are not published
    for _ in range(2):
        with pytest.raises(ConfigError) as caught:
            answers_of(statements)
        assert caught.value.where == str(statements)
        (statements / "results.jsonl").unlink(missing_ok=True)


def test_questions_whose_answer_is_not_published_are_neither_right_nor_wrong(tmp_path: Path) -> None:
    data, run = tmp_path / "data", tmp_path / "run"
    rows = [{"id": name, "images": ["a.png"], "text": "what?", "choices": ["x", "y"]} for name in ("known", "unknown")]
    write_lines(data / "asked.jsonl", [{**rows[0], "answers": {"x": 1}}, {**rows[1], "answers": {}}])
    lines = [{"id": row["id"], "answers": [["x", 1.0]], "predicted": "x", "score": 0.5} for row in rows]
    write_lines(run / "predictions/en.jsonl", [lines[0], {**lines[1], "answers": []}])
    settings = {
        "views.answer.folder": str(data), "views.answer.test_format": "rows", "model.answer_decoder": True,
        "views.answer.test": {"en": "asked.jsonl"},
    }  # fmt: skip
    found = answers_of(make_run(run, "xgqa", settings, {"en": ("asked.jsonl", "predictions/en.jsonl")}, "exact_match"))
    assert [(one.id, one.is_right) for one in found.answers] == [("known", True)]
