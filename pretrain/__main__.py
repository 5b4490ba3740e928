"""`python -m pretrain --recipe NAME`: train, or resume, one run on the ranks that the environment describes."""

from __future__ import annotations

import sys

from cclm.errors import CclmError


def main() -> int:
    """Run; user errors end with one sentence and exit code 2, without a traceback."""
    from pretrain.recipe import command_line, read_config

    try:
        config = read_config(command_line())
        from pretrain.build import open_run
        from pretrain.loop import train

        with open_run(config) as run:
            if run is not None:
                train(run)
    except CclmError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
