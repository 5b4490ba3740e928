"""Short words of the command line of fine-tuning, which stand for keys of the configuration. No torch.

TASK --checkpoint MODEL --data FOLDER
--recipe TASK --start.sources '["MODEL"]' --views.NAME.folder FOLDER       NAME: each view of the recipe
                                          --finetune.data FOLDER           of retrieval, where what is measured lies
measure RUN
--recipe RUN/config.yaml --start.sources '["RUN"]' --finetune.epochs 0 …
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from cclm.errors import ConfigError
from cclm.files.node import plain
from cclm.files.reading import parse_arguments, read_yaml

MEASURE: Final = "measure"
"""In place of a task: what a run has fine-tuned is measured on other files."""


def spelled_out(words: Sequence[str], recipe: Mapping[str, Any]) -> list[str]:
    """Return words with `--checkpoint` and `--data` written out; of a recipe that does not fine-tune, as they are."""
    if not isinstance(recipe.get("finetune"), Mapping):
        return list(words)
    found, rest = list[str](), iter(words)
    for word in rest:
        option, equals, value = word.partition("=")
        if option not in ("--checkpoint", "--data"):
            found.append(word)
            continue
        value = value if equals else next(rest, "")
        if option == "--checkpoint":
            found += ["--start.sources", json.dumps([value])]
        else:
            keys = [f"views.{view}.folder" for view in recipe["views"] if view != "image_text"]
            keys += ["finetune.data"] * any(view in recipe["views"] for view in ("image_text", "retrieve"))
            found += [part for key in keys for part in (f"--{key}", value)]
    return found


def to_measure(words: Sequence[str]) -> list[str]:
    """Return the command line of a run of no epochs that starts from a fine-tuned one, in a folder inside of its own.

    Raises:
        ConfigError: there is no such run, or it does not fine-tune.
    """
    run = Path(words[0] if words else "")
    path = run / "config.yaml"
    given = read_yaml(path, expected="a fine-tuned run", do="Name a run: measure RUN.") if path.is_file() else None
    if not isinstance(given, dict) or not isinstance(given.get("finetune"), dict):
        got, do = (
            words[0] if words else "nothing",
            "For example: measure runs/xvnli --finetune.protocol translate-test …",
        )
        raise ConfigError(where=MEASURE, expected="the folder of a fine-tuned run", got=got, do=do)
    rest = spelled_out(words[1:], given)
    protocol = dict(parse_arguments(rest, "--recipe").overrides).get("finetune.protocol")
    sources = given.get("start", {}).get("sources") or [run]
    own = {
        "start.sources": json.dumps([str(run)]),
        "run_folder": str(run / "measured" / (plain(protocol) if protocol else given["finetune"]["protocol"])),
        "finetune.epochs": "0",
        "finetune.name": given["finetune"].get("name") or Path(sources[-1]).name,
    }
    return ["--recipe", str(path), *(word for key, value in own.items() for word in (f"--{key}", value)), *rest]
