"""The command line of a program that trains: configuration → run → exit code. Nothing heavy is imported before it must.

`python -m pretrain` and `python -m finetune` are this with recipes, and what is measured, of their own.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from cclm.errors import ConfigError
from cclm.files.command_line import open_output
from cclm.run.causes import EXIT_CODES, Cause
from cclm.run.ending import end_with
from cclm.run.launcher import Place, adopt_place
from cclm.run.signals import StopRequest

if TYPE_CHECKING:
    from cclm.config import RunConfig
    from cclm.train.build import MakeEvaluation


@dataclass(frozen=True, kw_only=True)
class Program:
    """What is particular to a program."""

    command: str
    purpose: str
    """In a sentence, for its help."""
    recipes: Path
    finetunes: bool = False
    """Whether its configurations have a `finetune` block."""
    evaluation: Callable[[RunConfig], MakeEvaluation] | None = None
    """What is measured in a run; None: zero-shot retrieval, where the configuration has `evaluation`."""


def run_program(arguments: Sequence[str], program: Program) -> int:
    """Train, or resume, one run on the ranks that the environment describes; return the exit code.

    `cclm.run.causes` says which stands for what. What goes wrong ends with one sentence; only an error that nobody
    foresaw has a traceback.
    """
    open_output()
    with StopRequest.listening() as stop:  # before the long imports: a signal that comes now is heard
        return _run(arguments, program, stop)


def leave(code: int) -> NoReturn:
    """End the process: all is written, and the interpreter's own end could wait for threads of libraries, or crash."""
    sys.stdout.flush()
    os._exit(code)


def _run(arguments: Sequence[str], program: Program, stop: StopRequest) -> int:
    run_folder, place = None, Place()
    try:
        place = adopt_place(os.environ)  # a launcher that nobody reads is told before anything else is done
        from cclm.recipe.read import shown

        text = shown(arguments, program.command, program.purpose, program.recipes)
        if text is not None:
            sys.stdout.write(text)
            return 0
        config = checked_config(arguments, program, place)
        run_folder = Path(config.run_folder)
        from cclm.train.build import open_run
        from cclm.train.loop import train

        options: Any = {} if program.evaluation is None else {"make_evaluation": program.evaluation(config)}
        with open_run(config, stop, **options) as run:
            if run is None:
                sys.stdout.write(f"already done: {config.run_folder}\n")
            elif not train(run):
                sys.stderr.write("asked to stop: saved; the same command goes on from there\n")
                return EXIT_CODES[Cause.STOPPED]
    except Exception as error:  # noqa: BLE001 - every end has a cause and a code
        return end_with(error, run_folder, place.rank)
    return EXIT_CODES[Cause.DONE]


def checked_config(arguments: Sequence[str], program: Program, place: Place) -> RunConfig:
    """Read the configuration; rank 0 also looks at what it names, and says what deserves a line."""
    from cclm.recipe.check import check_recipe
    from cclm.recipe.epochs import with_epochs
    from cclm.recipe.read import read_recipe

    if place.rank != 0:
        return with_epochs(read_recipe(arguments, program.recipes))
    checked = check_recipe(arguments, world_size=place.world_size, recipes=program.recipes)
    for note in checked.notes:
        sys.stderr.write(f"note: {note}\n")
    if (checked.config.finetune is not None) is not program.finetunes:
        raise ConfigError(
            where="finetune",
            expected=f"a configuration for {program.command}",
            got="one that fine-tunes" if checked.config.finetune is not None else "one without a finetune block",
            do=f"Start it with python -m {'pretrain' if program.finetunes else 'finetune'}.",
        )
    return checked.config
