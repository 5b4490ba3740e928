"""`python -m pretrain --recipe NAME`: train, or resume, one run on the ranks that the environment describes."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from cclm.errors import CclmError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; user errors end with one sentence and exit code 2, without a traceback."""
    from pretrain.recipe import read_config

    try:
        config = read_config(sys.argv[1:] if arguments is None else arguments)
        from pretrain.build import open_run
        from pretrain.loop import train

        with open_run(config) as run:
            if run is None:
                sys.stdout.write(f"already done: {config.run_folder}\n")
            else:
                train(run)
    except CclmError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("stopped; the same command goes on from the last checkpoint\n")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
