"""`python -m pretrain --recipe NAME`: train, or resume, one run on the ranks that the environment describes."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from cclm.errors import CclmError
from cclm.run.stop import STOPPED_CODE, StopRequest

if TYPE_CHECKING:
    from cclm.config import RunConfig


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; user errors end with one sentence and exit code 2, a request to stop (SIGTERM, SIGUSR1) with 75."""
    with StopRequest.listening() as stop:  # before the long imports: a signal that comes now is not lost
        return _run(sys.argv[1:] if arguments is None else arguments, stop)


def _run(arguments: Sequence[str], stop: StopRequest) -> int:
    from cclm.recipe.read import shown

    try:
        text = shown(arguments, "python -m pretrain", "Pre-train a cross-view language model.")
        if text is not None:
            sys.stdout.write(text)
            return 0
        config = checked_config(arguments)
        from cclm.train.loop import train
        from pretrain.build import open_run

        with open_run(config, stop) as run:
            if run is None:
                sys.stdout.write(f"already done: {config.run_folder}\n")
            elif not train(run):
                sys.stderr.write("asked to stop: saved; the same command goes on from there\n")
                return STOPPED_CODE
    except CclmError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("stopped; the same command goes on from the last checkpoint\n")
        return 130
    return 0


def checked_config(arguments: Sequence[str]) -> RunConfig:
    """Read the configuration; rank 0 also looks at what it names, and says what deserves a line."""
    from cclm.recipe.check import check_recipe
    from cclm.recipe.read import read_recipe

    if os.environ.get("RANK", "0") != "0":
        return read_recipe(arguments)
    ranks = os.environ.get("WORLD_SIZE", "")
    checked = check_recipe(arguments, world_size=max(int(ranks), 1) if ranks.isdecimal() else 1)
    for note in checked.notes:
        sys.stderr.write(f"note: {note}\n")
    return checked.config


if __name__ == "__main__":
    sys.exit(main())
