"""The program of `test_fourth_view`: pre-training with a view of its own, which is all that it adds to `pretrain`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from cclm.config import RunConfig
from cclm.data.batch import Batch
from cclm.run.signals import StopRequest
from cclm.run.stop import STOPPED_CODE, StopKind, ask_to_stop
from cclm.train.build import open_run
from cclm.train.loop import Run, train
from cclm.views.table import OWN, Table
from tests.fourth_view import ENTRY
from tests.tiny_run import recipe
from tests.tiny_training import as_config

STEPS = 10
TABLE: Table = {**OWN, "audio_text": ENTRY}


def config_of(corpus: Path, run_folder: Path) -> RunConfig:
    """The tiny run, with sounds beside images and sentences."""
    settings = recipe(
        corpus,
        run_folder,
        optimizer={"total_steps": STEPS, "learning_rate": 0.002, "warmup_steps": 2},
        track={"every_steps": 1, "tensorboard": False},
    )
    images = settings["views"]["image_text"]
    settings["views"]["audio_text"] = {name: value for name, value in images.items() if name != "transform"}
    settings["data"]["bad_sample_limit"] = 0.5
    settings["model"]["text"]["dropout"] = 0.1  # must resume exactly, too
    return as_config(settings, TABLE)


def main(arguments: Sequence[str]) -> int:
    """Train, or go on: CORPUS RUN_FOLDER [STOP_AFTER]. With the last, ask for a stop when so many steps are done."""
    corpus, run_folder, *rest = arguments
    config = config_of(Path(corpus), Path(run_folder))
    with StopRequest.listening() as stop, open_run(config, stop, TABLE) as run:
        assert run is not None, "already done"
        return 0 if train(stopping(run, int(rest[0])) if rest else run) else STOPPED_CODE


def stopping(run: Run, steps: int) -> Run:
    """The same run, which is asked to stop when `steps` steps are done."""

    def batches(from_step: int) -> Iterator[tuple[Batch, Batch]]:
        for batch, on_device in run.batches(from_step):
            if batch.step == steps and run.engine.rank == 0:
                ask_to_stop(run.folder, "the test asked", StopKind.SCHEDULER)
            yield batch, on_device

    return replace(run, batches=batches)
