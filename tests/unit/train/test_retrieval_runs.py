"""Runs that measure retrieval: stopped in the middle of an evaluation, and without any training."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from cclm.config import RunConfig
from cclm.evaluate.benchmark_table import Choice, build_table
from cclm.evaluate.results import ResultStore, derive
from cclm.files.atomic import file_sha256
from cclm.recipe.epochs import with_epochs
from cclm.run.signals import StopRequest
from cclm.run.stop import StopKind, ask_to_stop, read_stopped
from cclm.train.build import open_run
from cclm.train.evaluation import evaluation_of
from cclm.train.retrieval_evaluation import RetrievalEvaluation
from cclm.train.retriever import Retriever
from tests import tiny_training
from tests.tiny_finetune import stand_in
from tests.tiny_retrieval import METRIC, settings_of
from tests.tiny_training import as_config


def config_of(settings: dict[str, Any], run_folder: Path, **finetune: Any) -> RunConfig:
    changed = {**settings, "engine": "plain", "run_folder": str(run_folder)}
    return with_epochs(as_config({**changed, "finetune": {**settings["finetune"], **finetune}}))


def run_to_the_end(config: RunConfig) -> bool:
    return tiny_training.run_to_the_end(config, make_evaluation=partial(evaluation_of, METRIC))


def results_of(folder: Path) -> list[Any]:
    """What was measured, without what differs between folders and clocks."""
    results = ResultStore(folder / "results.jsonl").read()
    return [replace(one, cost={}, written="", checkpoint="", config_sha256="") for one in results]


def stop_at(monkeypatch: pytest.MonkeyPatch, folder: Path, call: int) -> None:
    """Ask a run to stop while it encodes texts for the call-th time."""
    calls: list[Any] = []
    before = Retriever._encode_texts

    def asking(self: Retriever, texts: Any, keeps: bool) -> Any:
        calls.append(texts)
        if len(calls) == call:
            ask_to_stop(folder, "test", StopKind.USER)
        return before(self, texts, keeps)

    monkeypatch.setattr(Retriever, "_encode_texts", asking)


@pytest.mark.slow
def test_an_evaluation_hears_a_request_to_stop_and_is_made_up_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_of(tmp_path, name="mine", dev_sets={"dev": str(tmp_path / "test")})
    assert run_to_the_end(config_of(settings, tmp_path / "whole"))
    lines = (tmp_path / "whole" / "evaluations.jsonl").read_bytes()
    assert lines.count(b"\n") == 2

    config = config_of(settings, tmp_path / "stopped")
    # An evaluation encodes ten batches of texts. Stopped: behind the first epoch; when that is made up for; behind the
    # second epoch; in the test, after that was made up for.
    for call, step in ((2, 2), (2, 2), (12, 4), (12, 4)):
        with monkeypatch.context() as patch:
            stop_at(patch, tmp_path / "stopped", call)
            assert not run_to_the_end(config)
        stopped = read_stopped(tmp_path / "stopped")
        assert stopped is not None and stopped.step == step
    asked_again = list[str]()
    with monkeypatch.context() as patch:  # in the second language of the test
        stop_at(patch, tmp_path / "stopped", 7)
        assert not run_to_the_end(config)
    kept = results_of(tmp_path / "stopped")
    first = kept[0].language
    assert {one.language for one in kept} == {first}
    before_language = RetrievalEvaluation._language

    def noted(self: RetrievalEvaluation, found: Any, language: str, *rest: Any) -> Any:
        asked_again.append(language)
        return before_language(self, found, language, *rest)

    monkeypatch.setattr(RetrievalEvaluation, "_language", noted)
    assert run_to_the_end(config)
    assert asked_again and first not in asked_again, "what was measured whole is kept"
    assert (tmp_path / "stopped" / "evaluations.jsonl").read_bytes() == lines
    assert results_of(tmp_path / "stopped") == results_of(tmp_path / "whole")


@pytest.mark.slow
def test_a_model_is_measured_as_it_comes_on_annotation_files(tmp_path: Path) -> None:
    data = stand_in("retrieval", tmp_path / "data")
    settings = settings_of(tmp_path, epochs=0, data=str(data), dev_sets={"xflickrco": "."}, captions_per_image=None)
    settings["views"]["image_text"]["sources"] = {"none": {"path": str(tmp_path / "there is none")}}
    settings["start"] = {"sources": []}
    sets = {"xflickrco": ".", "shards": "test"}
    config = config_of(settings, tmp_path / "run", test_sets=sets)
    assert run_to_the_end(config)
    assert not (tmp_path / "run" / "evaluations.jsonl").exists()
    results = ResultStore(tmp_path / "run" / "results.jsonl").read()
    by_task = {
        task: {(one.language, one.metric, one.reranked): one for one in results if one.task == task}
        for task in ("xflickrco", "retrieval")
    }
    assert {language for language, *_ in by_task["xflickrco"]} == {"de", "en", "es"}
    assert by_task["xflickrco"].keys() == by_task["retrieval"].keys()
    for key, one in by_task["xflickrco"].items():
        assert one.value == by_task["retrieval"][key].value, "the same images and captions"
        assert derive(one, tmp_path / "run") == one.value
        assert (one.protocol, one.selected_on, one.split, one.num_rows) == ("no-fine-tuning", "last", "test", 6)
        file = data / "xFlickrCO" / "annotations" / one.language / "test.jsonl"
        assert (one.data_file, one.data_sha256, *one.data_hashes) == (str(file), *[file_sha256(file)] * 2)
        assert set(one.cost) == ({"pairs", "seconds", "share"} if one.reranked else set())
    assert {reranked for *_, reranked in by_task["xflickrco"]} == {0, 4}

    found = [(tmp_path / "run", one) for one in results]
    table = build_table(found, Choice(task="xflickrco", metric="t2i_r1"))
    rows = {(row.model, row.reranked) for row in table.rows}
    assert {("run", 0), ("run", 4), ("UC2", 0)} <= rows, "beside the published ones"
    with open_run(config, StopRequest(), make_evaluation=partial(evaluation_of, METRIC)) as run:
        assert run is None, "it is done"
