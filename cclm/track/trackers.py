"""Who else gets the lines of a run's log: TensorBoard, a CSV file, and services, each an extra of its own.

`log.jsonl` is the run's own; what stands here is a copy. Services hear of it from a thread, and one that fails is left
out for the rest of the attempt, with a note: none may stop a run, or make it wait. A run that resumes goes on in the
same place there, known by its identity (`RUN/identity.json`); services cannot take back what they were told of steps
that are done again, so such a step has two values there. What they keep while they are offline their own commands send
later.
"""

from __future__ import annotations

import csv
import io
import math
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Protocol

from cclm.errors import ConfigError
from cclm.files.atomic import replace_text
from cclm.run.progress import log_lines
from cclm.run.status import run_identity

CSV_NAME = "log.csv"
TENSORBOARD_NAME = "tensorboard"
CLOSE_S = 60.0
"""That the end of a run waits for a service."""


class Tracker(Protocol):
    """What gets the lines of a log, on rank 0."""

    def rewind(self, step: int) -> None:
        """Begin, or begin again: what was written of `step` and later ones is done again."""

    def write(self, step: int, values: Mapping[str, float], time_s: float) -> None:
        """Take a line: numbers by name (some may not be finite), of a moment in seconds since 1970. The log has it."""

    def close(self) -> None:
        """Send what is left."""


class TensorBoard:
    """Events in `folder/tensorboard`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / TENSORBOARD_NAME
        self._board: Any = None

    def rewind(self, step: int) -> None:
        """Tell TensorBoard to hide what was written before for steps that will be done again."""
        from torch.utils.tensorboard import SummaryWriter

        self.close()
        self._board = SummaryWriter(str(self._folder), purge_step=step if self._folder.exists() else None)

    def write(self, step: int, values: Mapping[str, float], time_s: float) -> None:
        """Add a scalar for each number."""
        for name, value in values.items():
            self._board.add_scalar(name, value, global_step=step, walltime=time_s)
        self._board.flush()

    def close(self) -> None:
        """Close the file."""
        if self._board is not None:
            self._board.close()


class Csv:
    """`folder/log.csv`: the log as a table, a column for each name; written anew when there is a new name."""

    def __init__(self, folder: Path) -> None:
        self._path, self._folder = folder / CSV_NAME, folder
        self._columns: list[str] = []

    def rewind(self, step: int) -> None:
        """Write what the log has; it is cut off already."""
        lines = list(log_lines(self._folder))
        self._columns = ["step", "time", *sorted({name for line in lines for name in line["values"]})]
        rows = ({"step": line["step"], "time": line["time"], **line["values"]} for line in lines)
        replace_text(self._path, self._text(*({name: name for name in self._columns}, *rows)))

    def write(self, step: int, values: Mapping[str, float], time_s: float) -> None:
        """Append a row."""
        if not values.keys() <= set(self._columns):
            self.rewind(step)
            return
        with self._path.open("a", encoding="utf-8", newline="") as file:
            finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
            file.write(self._text({"step": step, "time": round(time_s, 3), **finite}))

    def close(self) -> None:
        """Nothing is open."""

    def _text(self, *rows: Mapping[str, object]) -> str:
        text = io.StringIO()
        csv.DictWriter(text, self._columns, lineterminator="\n").writerows(rows)
        return text.getvalue()


class _Service:
    """Of a run's folder; the run that is open there."""

    def __init__(self, folder: Path, project: str, identity: str, config: Mapping[str, Any]) -> None:
        self._folder, self._project, self._identity, self._config = folder, project, identity, dict(config)
        self._run: Any = None


class Wandb(_Service):
    """Weights & Biases; `WANDB_MODE=offline` keeps the run in the folder, for `wandb sync`."""

    def rewind(self, step: int) -> None:
        """Open the run, new or as it is; steps are numbers of their own, so that they may go back."""
        import wandb

        if self._run is None:
            self._run = wandb.init(
                project=self._project, id=self._identity, name=self._folder.name, dir=self._folder, resume="allow",
                config=self._config, settings=wandb.Settings(console="off", silent=True),
            )  # fmt: skip
            self._run.define_metric("*", step_metric="step")

    def write(self, step: int, values: Mapping[str, float], time_s: float) -> None:
        """Log the line."""
        self._run.log({"step": step, **values})

    def close(self) -> None:
        """Send what is left, and wait for the process that does."""
        if self._run is not None:
            import wandb

            self._run.finish()
            wandb.teardown()


class Mlflow(_Service):
    """MLflow, at `MLFLOW_TRACKING_URI`."""

    _client: Any = None

    def rewind(self, step: int) -> None:
        """Find the run by its tag, or make it."""
        from mlflow import MlflowClient

        if self._client is not None:
            return
        self._client = MlflowClient()
        found = self._client.get_experiment_by_name(self._project)
        experiment = found.experiment_id if found else self._client.create_experiment(self._project)
        runs = self._client.search_runs([experiment], f"tags.cclm = '{self._identity}'")
        run = runs[0] if runs else self._client.create_run(
            experiment, run_name=self._folder.name, tags={"cclm": self._identity}
        )  # fmt: skip
        self._run = run.info.run_id
        if not runs:
            self._client.log_dict(self._run, self._config, "config.yaml")

    def write(self, step: int, values: Mapping[str, float], time_s: float) -> None:
        """Log the line in one call."""
        from mlflow.entities import Metric

        self._client.log_batch(
            self._run, metrics=[Metric(name, value, int(1000 * time_s), step) for name, value in values.items()]
        )

    def close(self) -> None:
        """Say that it has ended."""
        if self._client is not None:
            self._client.set_terminated(self._run)


class Trackio(_Service):
    """trackio: a local database (`TRACKIO_DIR`), or a Space."""

    def rewind(self, step: int) -> None:
        """Open the run, new or as it is."""
        import trackio

        if self._run is None:
            self._run = trackio.init(
                project=self._project, name=f"{self._folder.name}-{self._identity}", resume="allow",
                config=self._config, embed=False,
            )  # fmt: skip

    def write(self, step: int, values: Mapping[str, float], time_s: float) -> None:
        """Log the line."""
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        """Send what is left."""
        if self._run is not None:
            self._run.finish()


SERVICES: dict[str, Callable[[Path, str, str, Mapping[str, Any]], Tracker]] = {
    "wandb": Wandb,
    "mlflow": Mlflow,
    "trackio": Trackio,
}


class Careful:
    """Passes on to a tracker, from a thread, until it fails: then a note, and nothing more."""

    def __init__(self, name: str, tracker: Tracker) -> None:
        self._name, self._tracker = name, tracker
        self._waiting: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()
        self.has_failed = False

    def rewind(self, step: int) -> None:
        """As the tracker does."""
        self._waiting.put(partial(self._tracker.rewind, step))

    def write(self, step: int, values: Mapping[str, float], time_s: float) -> None:
        """As the tracker does."""
        self._waiting.put(partial(self._tracker.write, step, dict(values), time_s))

    def close(self) -> None:
        """As the tracker does; waits for it, but not for ever."""
        self._waiting.put(self._tracker.close)
        self._waiting.put(None)
        self._thread.join(CLOSE_S)
        if self._thread.is_alive():
            sys.stderr.write(f"note: {self._name} has not taken everything within {CLOSE_S:.0f} s\n")

    def _run(self) -> None:
        while (action := self._waiting.get()) is not None:
            try:
                if not self.has_failed:
                    action()
            except Exception as error:  # noqa: BLE001 - a service is no reason to end a run; it is said
                self.has_failed = True
                told = f"{type(error).__name__}: {error}"
                sys.stderr.write(f"note: {self._name} gets nothing more of this attempt: {told}\n")


def check_services(names: Sequence[str]) -> None:
    """Raise ConfigError if a service's package is not installed."""
    for name in names:
        if find_spec(name) is None:
            raise ConfigError(
                where="track.services",
                expected=f"{name} to be installed",
                got="no such package",
                do=f"pip install 'cclm-pretraining[{name}]', or leave it out of track.services.",
            )


def service(name: str, folder: Path, project: str, config: Mapping[str, Any]) -> Tracker:
    """Return the tracker of a service, for a run's folder."""
    return Careful(name, SERVICES[name](folder, project, run_identity(folder), config))
