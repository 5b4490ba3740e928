"""`python -m finetune TASK --checkpoint MODEL --data FOLDER`: fine-tune a model and measure it; or resume.

python -m finetune measure RUN --KEY VALUE … a fine-tuned run on other test files, under another protocol
python -m finetune stand-in TASK FOLDER     a little drawn data of the task's form, to try it with
python -m finetune data check TASK FOLDER   what a data folder has and lacks
python -m finetune table RUN …              tables of results
python -m finetune forgetting BEFORE AFTER  what fine-tuning changed in each language
python -m finetune gallery RUN              a page of answers with their images
python -m finetune assign SHARDS --to FILE  rows for the recipe marvl_domain, which goes before marvl
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cclm.errors import ConfigError
from cclm.files.command_line import open_output, say
from cclm.files.reading import read_yaml
from cclm.files.shipped import CHECKOUT
from cclm.files.text import did_you_mean
from cclm.recipe.words import MEASURE, spelled_out, to_measure
from cclm.run.ending import end_with
from cclm.train.program import Program, leave, run_program
from finetune.commands import COMMANDS, run_command
from finetune.seeds import SEEDS, run_seeds, take_numbers
from finetune.tasks.table import TASKS

if TYPE_CHECKING:
    from cclm.config import RunConfig
    from cclm.train.build import MakeEvaluation

STAND_IN = "stand-in"


def evaluation(config: RunConfig) -> MakeEvaluation:
    """Return what is measured: the task that the configuration names (ConfigError: it needs another view)."""
    from functools import partial

    from cclm.train.evaluation import TaskMetric, evaluation_of

    assert config.finetune is not None, "checked before"
    name = config.finetune.task
    task = TASKS[known_task(name, "finetune.task")]
    if task.view not in config.views:
        expected, got = (
            f"the task of a recipe with the view {task.view}",
            f"{name} in one with {', '.join(config.views)}",
        )
        raise ConfigError(where="finetune.task", expected=expected, got=got, do=f"Start `python -m finetune {name}`.")
    metric = TaskMetric(task=name, view=task.view, metrics=task.metrics)
    return partial(evaluation_of, metric)


PROGRAM = Program(
    command="python -m finetune",
    purpose="Fine-tune a pre-trained model for a task, measure it. In short: TASK --checkpoint MODEL --data DATA\n\n"
    + "\n".join(f"    {name:12} {task.title}" for name, task in TASKS.items())
    + "\n\nTASK … --seeds N [--ranks R]: with N seeds, one after another, on R ranks each, in RUN/seed_S"
    + f"\n    {MEASURE} RUN --KEY VALUE …: what a run has fine-tuned, on other test files or under another protocol"
    + f"\n    {STAND_IN} TASK FOLDER: a little drawn data of a task, to try it with",
    recipes=CHECKOUT / "finetune" / "recipes",
    finetunes=True,
    evaluation=evaluation,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, and return the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        if words[:1] == [STAND_IN]:
            open_output()
            return draw(words[1:])
        if words and words[0] in COMMANDS:
            open_output()
            run_command(words)
            return 0
        numbers, words = take_numbers(with_recipe(words))
        if SEEDS in numbers:
            open_output()
            return run_seeds(words, PROGRAM.recipes, **numbers)
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - every end has a sentence and a code
        return end_with(error)
    return run_program(words, PROGRAM)


def draw(words: Sequence[str]) -> int:
    """Write a task's stand-in data."""
    if len(words) != 2:
        raise ConfigError(
            where=STAND_IN, expected="a task and a folder", got=" ".join(words) or "nothing",
            do=f"For example: python -m finetune {STAND_IN} xvnli data/xvnli-stand-in",
        )  # fmt: skip
    TASKS[known_task(words[0], STAND_IN)].draw(Path(words[1]))
    say(f"written: {words[1]}")
    return 0


def with_recipe(words: Sequence[str]) -> list[str]:
    """Return a command line in the words of the configuration: TASK, --checkpoint and --data stand for keys of it."""
    if not words or words[0].startswith("-"):
        return list(words)
    if words[0] == MEASURE:
        return to_measure(words[1:])
    path = PROGRAM.recipes / f"{words[0]}.yaml"
    if not path.is_file():
        known_task(words[0], PROGRAM.command)
    recipe = read_yaml(path, expected="a recipe", do="Repair it.")
    return ["--recipe", words[0], *spelled_out(words[1:], recipe)]


def known_task(name: str, where: str) -> str:
    """Return the name of a task (ConfigError: there is none of this name)."""
    if name in TASKS:
        return name
    raise ConfigError(
        where=where, expected=f"a task: {', '.join(TASKS)}", got=repr(name) + did_you_mean(name, TASKS),
        do="Correct the name.",
    )  # fmt: skip


if __name__ == "__main__":
    leave(main())
