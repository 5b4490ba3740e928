"""`python -m pretrain --recipe NAME`: train, or resume, one run on the ranks that the environment describes.

python -m pretrain check NAME --world N     what would go wrong, and what the run needs, before it is started
python -m pretrain replay RUN --step K      a step again, beside what the run wrote down about it
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from cclm.files.command_line import open_output
from cclm.recipe.read import RECIPES
from cclm.run.ending import end_with
from cclm.train.program import Program, leave, run_program

CHECK, REPLAY = "check", "replay"
PROGRAM = Program(
    command="python -m pretrain",
    purpose="Pre-train a cross-view language model. `check NAME --world N` only says what a run would need.",
    recipes=RECIPES,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, and return the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words[:1] not in ([CHECK], [REPLAY]):
        return run_program(words, PROGRAM)
    open_output()
    try:
        if words[0] == REPLAY:
            from cclm.train import replay

            return replay.main(words[1:], PROGRAM.command)
        from cclm.forecast.check import main as forecast

        forecast(words[1:], f"{PROGRAM.command} {CHECK}", PROGRAM.recipes)
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - every end has a cause and a code
        return end_with(error)
    return 0


if __name__ == "__main__":
    leave(main())
