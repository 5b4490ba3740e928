"""`python -m pretrain --recipe NAME`: train, or resume, one run on the ranks that the environment describes."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cclm.files.command_line import open_output
from cclm.run.causes import EXIT_CODES, Cause
from cclm.run.ending import end_with
from cclm.run.launcher import Place, adopt_place
from cclm.run.signals import StopRequest

if TYPE_CHECKING:
    from cclm.config import RunConfig


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, and return the exit code: `cclm.run.causes` says which stands for what.

    What goes wrong ends with one sentence; only an error that nobody foresaw has a traceback.
    """
    open_output()
    with StopRequest.listening() as stop:  # before the long imports: a signal that comes now is heard
        return _run(sys.argv[1:] if arguments is None else arguments, stop)


def _run(arguments: Sequence[str], stop: StopRequest) -> int:
    run_folder, place = None, Place()
    try:
        place = adopt_place(os.environ)  # a launcher that nobody reads is told before anything else is done
        from cclm.recipe.read import shown

        text = shown(arguments, "python -m pretrain", "Pre-train a cross-view language model.")
        if text is not None:
            sys.stdout.write(text)
            return 0
        config = checked_config(arguments, place)
        run_folder = Path(config.run_folder)
        from cclm.train.loop import train
        from pretrain.build import open_run

        with open_run(config, stop) as run:
            if run is None:
                sys.stdout.write(f"already done: {config.run_folder}\n")
            elif not train(run):
                sys.stderr.write("asked to stop: saved; the same command goes on from there\n")
                return EXIT_CODES[Cause.STOPPED]
    except Exception as error:  # noqa: BLE001 - every end has a cause and a code
        return end_with(error, run_folder, place.rank)
    return EXIT_CODES[Cause.DONE]


def checked_config(arguments: Sequence[str], place: Place) -> RunConfig:
    """Read the configuration; rank 0 also looks at what it names, and says what deserves a line."""
    from cclm.recipe.check import check_recipe
    from cclm.recipe.read import read_recipe

    if place.rank != 0:
        return read_recipe(arguments)
    checked = check_recipe(arguments, world_size=place.world_size)
    for note in checked.notes:
        sys.stderr.write(f"note: {note}\n")
    return checked.config


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code)  # all is written; the end of the interpreter could wait for threads of libraries, or crash in them
