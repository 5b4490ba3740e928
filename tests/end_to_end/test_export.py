"""Train in small, measure, export, load in a clean process, report: the second half of the demonstration, for real."""

from __future__ import annotations

import errno
import json
import re
import shutil
from pathlib import Path

import pytest
import torch

from cclm.cli.__main__ import main
from cclm.files import atomic
from cclm.hub.open import open_model
from pretrain.__main__ import main as pretrain
from tests.tiny_run import recipe, write_corpus, write_recipe

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the plain engine."""
    folder = tmp_path_factory.mktemp("run")
    corpus = write_corpus(folder / "corpus")
    settings = write_recipe(folder / "recipe.yaml", recipe(corpus, folder / "run", engine="plain"))
    assert pretrain(["--recipe", str(settings)]) == 0
    return folder / "run"


@pytest.fixture(scope="module")
def measured(run: Path) -> Path:
    """The run with results.json and gallery.json."""
    images = run.parent / "corpus" / "images"
    dev = shutil.copytree(images, run.parent / "dev")
    (run / "results.json").write_text('{"seconds": {"train": 12.5}}')
    arguments = ["--shards", str(images), "--choose-rerank-on", str(dev), "--out", str(run / "results.json")]
    assert main(["evaluate", str(run), *arguments]) == 0
    return run


@pytest.fixture(scope="module")
def exported(measured: Path) -> Path:
    assert main(["export", str(measured), "--to", str(measured / "export")]) == 0
    return measured / "export"


def test_results_hold_what_the_demonstration_promises(measured: Path) -> None:
    results = json.loads((measured / "results.json").read_text())
    assert set(results["groups"]["english"]) == {"t2i", "i2t"}
    assert results["reranked"]["top_k"] == 8
    assert results["dev"]["tried_rules"][0]["match_weight"] == 0.0
    assert "match_alone" in results["reranked_not_chosen"] or results["reranked"]["rule"]["similarity_weight"] == 0
    assert set(results["matching"]["languages"]["en"]) == {"random", "hard"}
    assert results["seconds"]["train"] == 12.5 and results["seconds"]["evaluate"] > 0


def test_a_fresh_process_agreed(exported: Path) -> None:
    parity = json.loads((exported / "parity.json").read_text())
    assert parity["reference"] == "training engine: plain engine, one process, fp32"
    assert set(parity["parts"]) == {"image_features", "text_features", "match_logits", "masked_lm_logits"}
    assert all(part["max_abs"] <= part["allowed_abs"] for part in parity["parts"].values())
    assert parity["parts"]["text_features"]["min_cosine"] > 0.9999
    assert parity == json.loads((exported.parent / "parity.json").read_text()), "the report reads it from the run"


def test_a_run_that_may_only_be_read_is_exported_and_told(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = shutil.copytree(run, tmp_path / "archive", ignore=shutil.ignore_patterns("export", "parity.json"))
    replace_text = atomic.replace_text

    def refuse(path: Path, text: str) -> None:  # whoever runs this test; root may write everywhere
        if path.is_relative_to(archive):
            raise OSError(errno.EROFS, "Read-only file system", str(path))
        replace_text(path, text)

    monkeypatch.setattr(atomic, "replace_text", refuse)
    assert main(["export", str(archive), "--to", str(tmp_path / "out")]) == 0
    assert f"the report is in {tmp_path}/out/parity.json only" in capsys.readouterr().out
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    assert main(["export", str(archive), "--to", "."]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_the_export_holds_the_trained_weights(run: Path, exported: Path) -> None:
    trained, again = open_model(run), open_model(exported)
    assert trained.origin.name.startswith("step_")
    for name, tensor in trained.model.state_dict().items():
        assert torch.equal(tensor, again.model.state_dict()[name]), name


def test_measuring_the_export_gives_the_same_numbers(measured: Path, exported: Path, tmp_path: Path) -> None:
    images = measured.parent / "corpus" / "images"
    assert main(["evaluate", str(exported), "--shards", str(images), "--out", str(tmp_path / "again.json")]) == 0
    again = json.loads((tmp_path / "again.json").read_text())
    assert again["languages"] == json.loads((measured / "results.json").read_text())["languages"]


def test_the_model_card_has_the_numbers_and_the_licences(measured: Path, exported: Path) -> None:
    card = (exported / "README.md").read_text()
    results = json.loads((measured / "results.json").read_text())
    assert f"{results['groups']['english']['t2i']['r10']:.1f}" in card
    assert card.startswith("---\nlibrary_name: transformers")
    assert "CC0-1.0" in card or "MIT" in card or "CC-BY-4.0" in card
    assert "total_steps: 12" in card


def test_a_broken_export_is_caught_by_the_clean_process(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:  # type: ignore[no-untyped-def]
    from cclm.hub import export as module

    def writes_code_that_needs_us(*arguments: object, **options: object) -> None:
        write_folder(*arguments, **options)  # type: ignore[arg-type]
        code = arguments[1] / "modeling_cclm.py"  # type: ignore[operator]
        code.write_text("import cclm.errors\n" + code.read_text())

    write_folder = module.write_folder
    monkeypatch.setattr(module, "write_folder", writes_code_that_needs_us)
    assert main(["export", str(run), "--to", str(tmp_path / "out")]) == 2
    assert "cclm is hidden: an export must not need it" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_the_report_is_one_file_without_outside_resources(measured: Path, exported: Path) -> None:
    assert main(["report", str(measured)]) == 0
    page = (measured / "report.html").read_text()
    assert "<script" not in page and not re.search(r'(src|href)="(?!data:|https://(www|creative|opensource))', page)
    assert "ITC loss" in page and "Gallery" in page and "data:image/png;base64," in page
    assert "on images that it was trained on" in page and "ero-shot" not in page, "these tests measure on them"
