"""`python -m finetune TASK … --seeds N [--ranks R]`: the same run with N seeds, one after another, in RUN/seed_S.

Each is a run of its own, which a killed command finds again: the same command goes on. "{seed}" in any value is the
seed of the run, so that seeds can start from those of another run: --checkpoint 'runs/english/seed_{seed}'.
Under Slurm the same is `python -m launch sweep TASK --vary seed=42,43,44`, an array of jobs.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, Final

from cclm.errors import ConfigError
from cclm.files.command_line import say
from cclm.files.node import Node, plain
from cclm.files.reading import parse_arguments, plain_value, read_yaml
from cclm.files.shipped import find_shipped
from cclm.run.launcher import adopt_place

SEEDS, RANKS = "seeds", "ranks"
PLACEHOLDER: Final = "{seed}"
OWN: Final = ("seed", "run_folder")
"""Keys of the configuration that differ between the runs."""
FIRST_SEED: Final = 42
"""Where the recipe names none, as in the configuration."""


def take_numbers(words: Sequence[str]) -> tuple[dict[str, int], list[str]]:
    """Return --seeds and --ranks of a command line, and the other words (ConfigError: not a number from 1)."""
    found, rest = dict[str, int](), list[str]()
    given = iter(words)
    for word in given:
        name, equals, value = word.removeprefix("--").partition("=")
        if not word.startswith("--") or name not in (SEEDS, RANKS):
            rest.append(word)
            continue
        text = value if equals else next(given, "")
        if not text.isdecimal() or int(text) < 1:
            raise ConfigError(where=f"--{name}", expected="a number from 1", got=repr(text), do="Give how many.")
        found[name] = int(text)
    if RANKS in found and SEEDS not in found:
        do = "For one run: python -m launch run --ranks N -- python -m finetune …"
        raise ConfigError(where=f"--{RANKS}", expected=f"--{SEEDS} beside it", got="none", do=do)
    return found, rest


def commands_of_seeds(
    words: Sequence[str], recipes: Path, *, seeds: int, ranks: int
) -> Iterator[tuple[str, list[str]]]:
    """Yield what is said of each run, and its command behind `python -m` (ConfigError: no run folder is named)."""
    settings = _own_settings(words, recipes)
    if not settings.get("run_folder"):
        do = "Add --run_folder runs/NAME."
        raise ConfigError(where="run_folder", expected="a folder for the runs of all seeds", got="none", do=do)
    try:
        first = int(settings.get("seed", FIRST_SEED))
    except (TypeError, ValueError):
        got = repr(settings["seed"])
        raise ConfigError(where="seed", expected="a whole number", got=got, do="Give the first seed.") from None
    for seed in range(first, first + seeds):
        folder = str(Path(str(settings["run_folder"])) / f"seed_{seed}")
        own = [word.replace(PLACEHOLDER, str(seed)) for word in words]  # of two values of a key the later one counts
        command = ["finetune", *own, "--seed", str(seed), "--run_folder", folder]
        if ranks > 1:
            launcher = ["launch", "run", "--ranks", str(ranks), "--run-folder", folder, "--"]
            command = [*launcher, sys.executable, "-m", *command]
        yield f"seed {seed}: {folder}", command


def _own_settings(words: Sequence[str], recipes: Path) -> dict[str, Any]:
    """Return seed and run folder, of the recipes or, which wins, of the words."""
    line, found = parse_arguments(words, "--recipe"), dict[str, Any]()
    for name in line.files:
        path = find_shipped(name, recipes, ".yaml", where="recipe", do="Check the name.")
        content = read_yaml(path, expected="a recipe", do="Repair it.")
        found |= {key: content[key] for key in OWN if isinstance(content, Mapping) and key in content}
    given = ((key, _value(key, node)) for key, node in line.overrides if key in OWN)
    return found | {key: value for key, value in given if value not in (None, "")}


def _value(key: str, node: Node) -> Any:
    return plain(node) if node.text is None else plain_value(node.text, f"--{key}")


def run_seeds(words: Sequence[str], recipes: Path, *, seeds: int, ranks: int = 1) -> int:
    """Run all seeds; return 0, or the exit code of the first one that fails or is stopped.

    Raises:
        ConfigError: this process is one of several ranks already.
    """
    if adopt_place(os.environ).world_size > 1:
        do = f"Start it without launcher, with --{RANKS} N; or python -m launch sweep TASK --vary seed=42,43,44."
        raise ConfigError(where=f"--{SEEDS}", expected="one process", got="one of several ranks", do=do)
    for said, command in commands_of_seeds(words, recipes, seeds=seeds, ranks=ranks):
        say(said)
        code = _run([sys.executable, "-m", *command])
        if code:
            sys.stderr.write(f"{said} ended with code {code}; the same command goes on\n")
            return code
    return 0


def _run(command: Sequence[str]) -> int:
    """Run a command to its end, which gets the signals that would end this process."""
    process: subprocess.Popen[bytes] | None = None
    too_early = list[int]()

    def forward(number: int, _: FrameType | None) -> None:
        if process is None:
            too_early.append(number)
        else:
            process.send_signal(number)

    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        for number, handler in before.items():
            if handler is not signal.SIG_IGN:  # the command inherits that
                signal.signal(number, forward)
        process = subprocess.Popen(command)
        for number in before:
            signal.signal(number, forward)
        for early in too_early:
            process.send_signal(early)
        while True:
            try:
                code = process.wait()
                return code if code >= 0 else 128 - code
            except KeyboardInterrupt:  # of the keyboard the child has heard itself: it saves
                continue
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
