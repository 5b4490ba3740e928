"""`python -m pretrain --recipe NAME`: train, or resume, one run on the ranks that the environment describes."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from cclm.errors import CclmError
from cclm.run.causes import EXIT_CODES, cause_of
from cclm.run.stop import STOPPED_CODE, StopRequest


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; user errors end with one sentence and exit code 2, a request to stop (SIGTERM, SIGUSR1) with 75."""
    with StopRequest.listening() as stop:  # before the long imports: a signal that comes now is not lost
        return _run(sys.argv[1:] if arguments is None else arguments, stop)


def _run(arguments: Sequence[str], stop: StopRequest) -> int:
    from pretrain.recipe import read_config

    try:
        config = read_config(arguments)
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
        return EXIT_CODES[cause_of(error)]
    except KeyboardInterrupt:
        sys.stderr.write("stopped; the same command goes on from the last checkpoint\n")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
