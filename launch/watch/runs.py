"""Find run folders: those of this user's working folder, or the one that a command names."""

from __future__ import annotations

from pathlib import Path

from cclm.errors import ConfigError
from cclm.run.status import DONE_NAME, STATUS_FOLDER
from launch.plan.snapshot import CODE
from launch.plan.sweep import POINTS
from launch.slurm.history import HISTORY

RUNS = Path("runs")
"""Where runs lie unless somebody says otherwise."""
INSIDE = ("*", f"{POINTS}/*")
"""A stage of a run of several (`shards`); a point of a sweep."""
PLACES = ("*", *(f"*/{place}" for place in INSIDE))


def is_run(folder: Path) -> bool:
    """Return whether a run has begun, or was submitted, in this folder. One that we may not enter may be one: whoever
    then reads it says so."""
    try:
        return any((folder / name).exists() for name in (HISTORY, STATUS_FOLDER, DONE_NAME))
    except PermissionError:
        return True


def find_runs(root: Path) -> list[Path]:
    """Return all run folders in `root` and one level below, sorted by path."""
    found = {folder for place in PLACES for folder in root.glob(place) if folder.is_dir() and is_run(folder)}
    # A run's copy of the code has links to the folders of its checkout, of whatever name.
    return sorted(folder for folder in found if folder.name != CODE or not is_run(folder.parent))


def find_run(name: str) -> Path:
    """Return the folder of a run, given by its path or by its name in `runs/`. Raise ConfigError if it is no run
    folder."""
    places = (place for place in (Path(name), RUNS / name) if place.is_dir())
    folder = next((place for place in places if is_run(place) or (place / "logs").is_dir()), None)
    if folder is not None:
        return folder.absolute()
    found = sorted({path for place in (Path(name), RUNS / name) for path in _inside(place)})
    if found:
        raise ConfigError(
            where="RUN", expected="one run", got=f"{name!r} with {len(found)} runs in it",
            do=f"Name one, as {found[0]}.",
        )  # fmt: skip
    known = ", ".join(str(path.relative_to(RUNS)) for path in find_runs(RUNS)[:20]) or "none"
    raise ConfigError(
        where="RUN", expected=f"the folder of a run, or a name in {RUNS}/ ({known})", got=repr(name),
        do="Check the name; `python -m launch status` lists the runs.",
    )  # fmt: skip


def find_runs_of(name: str) -> list[Path]:
    """Return the run of this name; or those in it, if it is a sweep or has stages, in the order of numbers or names.
    Raise ConfigError if there is no run."""
    for folder in (Path(name), RUNS / name):
        inside = _inside(folder)
        if inside and not is_run(folder):
            return sorted(inside, key=lambda path: (len(path.name) if path.name.isdigit() else 0, path.name))
    return [find_run(name)]


def _inside(folder: Path) -> list[Path]:
    return [path.absolute() for place in INSIDE for path in folder.glob(place) if is_run(path)]
