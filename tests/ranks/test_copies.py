"""A run whose folder is gone goes on from its copies: bit by bit on as many ranks, and on another number, too."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch

from cclm.checkpoint.store import Store
from cclm.config import RunConfig
from cclm.data.batch import Batch
from cclm.engine.stored_weights import load_full_state
from cclm.errors import CheckpointError
from cclm.run.checkpoints import complete_checkpoints, step_folder
from cclm.run.signals import StopRequest
from cclm.run.stop import StopKind, ask_to_stop
from cclm.track.metrics import read_metrics
from cclm.train.build import open_run
from cclm.train.loop import train
from tests.ranks.harness import on_ranks
from tests.tiny_run import recipe, write_corpus
from tests.tiny_training import as_config

pytest.importorskip("fsspec")
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]
STEPS, STOP = 6, 4


def _train(config: RunConfig, stop_at: int | None = None) -> bool:
    own_group = patch("cclm.train.build.process_group", lambda topology: nullcontext())
    patient = patch("cclm.train.loop.STOPPED_COPY_S", 600.0)
    with patient, nullcontext() if config.engine == "plain" else own_group, open_run(config, StopRequest()) as run:
        assert run is not None
        batches = run.batches

        def stopping(from_step: int) -> Iterator[tuple[Batch, Batch]]:
            for batch in batches(from_step):
                if batch[0].step == stop_at and run.engine.rank == 0:
                    ask_to_stop(run.folder, "test", StopKind.USER)
                yield batch

        return train(replace(run, batches=stopping))


def log_of(folder: Path) -> list[Any]:
    """The log without what the clock and the store decide."""
    names = ("speed/", "checkpoint/")
    return [
        (step, {name: value for name, value in values.items() if not name.startswith(names)})
        for step, values in read_metrics(folder)
    ]


def settings(corpus: Path, run: Path, **changes: Any) -> dict[str, Any]:
    checkpoint = {"every_steps": 2, "keep": 1, "copy_to": f"file://{run.parent}/store"}
    return recipe(
        corpus, run, optimizer={"total_steps": STEPS, "learning_rate": 0.01}, checkpoint=checkpoint, **changes
    )


def test_on_a_new_cluster_it_goes_on_bit_by_bit(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path)
    track = {"every_steps": 4, "tensorboard": False}
    values = settings(corpus, tmp_path / "first", engine="plain", track=track)
    values["model"]["text"]["dropout"] = 0.1
    config = as_config(values)
    whole = replace(config, run_folder=str(tmp_path / "whole"), checkpoint=replace(config.checkpoint, copy_to=None))
    assert _train(whole)
    assert not _train(config, STOP)
    assert sorted(Store(f"file://{tmp_path}/store").copies()) == [STOP], "the end waits for the copy"
    shutil.rmtree(tmp_path / "first")
    assert _train(replace(config, run_folder=str(tmp_path / "second")))
    before, after = ((tmp_path / run / "ledger.jsonl").read_text() for run in ("whole", "second"))
    assert before == after
    assert log_of(tmp_path / "second") == log_of(tmp_path / "whole")
    expected, found = (load_full_state(step_folder(tmp_path / run, STEPS)) for run in ("whole", "second"))
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []
    assert sorted(Store(f"file://{tmp_path}/store").copies()) == [STEPS], "pruned by the run's rule"


def test_a_damaged_copy_is_set_aside_for_the_one_before(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    config = as_config(settings(write_corpus(tmp_path), tmp_path / "first", engine="plain"))
    config = replace(config, checkpoint=replace(config.checkpoint, keep=2))
    assert not _train(config, STOP)
    shutil.rmtree(tmp_path / "first")
    store = Store(f"file://{tmp_path}/store")
    assert sorted(store.copies()) == [2, 4]
    changed = max((tmp_path / "store" / step_folder(Path(), 4).name).rglob("*"), key=lambda path: path.stat().st_size)
    content = bytearray(changed.read_bytes())
    content[len(content) // 2] ^= 1
    changed.write_bytes(content)
    with patch("cclm.shardfile.cache.time.sleep"):
        assert _train(replace(config, run_folder=str(tmp_path / "second")))
    said = capfd.readouterr().err
    assert "the copy of step 4 is damaged and passed over" in said and "goes on from step 2" in said
    assert sorted(store.copies()) == [4, STEPS], "step 4 was copied anew"


def test_damaged_copies_alone_are_one_error(tmp_path: Path) -> None:
    config = as_config(settings(write_corpus(tmp_path), tmp_path / "first", engine="plain"))
    assert not _train(config, STOP)
    shutil.rmtree(tmp_path / "first")
    (store,) = (tmp_path / "store").iterdir()
    next(path for path in sorted(store.rglob("*")) if path.is_file() and "checkpoint" in path.parts[-2]).unlink()
    with pytest.raises(CheckpointError) as error:
        _train(replace(config, run_folder=str(tmp_path / "second")))
    assert "damaged ones only" in str(error.value)
    assert not complete_checkpoints(tmp_path / "second")


def test_two_ranks_and_then_three(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path)
    config = as_config(settings(corpus, tmp_path / "first"))
    assert on_ranks(_train, 2, config, STOP) == [False] * 2
    ledger = (tmp_path / "first" / "ledger.jsonl").read_text()
    shutil.rmtree(tmp_path / "first")
    assert on_ranks(_train, 3, replace(config, run_folder=str(tmp_path / "second"))) == [True] * 3
    assert (tmp_path / "second" / "ledger.jsonl").read_text().startswith(ledger)
    assert complete_checkpoints(tmp_path / "second") == [step_folder(tmp_path / "second", STEPS)]
    assert log_of(tmp_path / "second")[-1][0] == STEPS - 1


def test_training_goes_on_when_the_store_is_gone(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    config = as_config(settings(write_corpus(tmp_path), tmp_path / "run", engine="plain"))
    with open_run(config, StopRequest()) as run:
        assert run is not None
        (tmp_path / "store").rmdir()
        (tmp_path / "store").write_text("no folder any more")
        assert train(run)
        assert run.checkpointer.copier is not None
        assert run.checkpointer.copier.num_failed == capfd.readouterr().err.count("was given up") > 0
    assert complete_checkpoints(tmp_path / "run") == [step_folder(tmp_path / "run", STEPS)]
