"""The rules hold for the whole code, and each of them can tell right from wrong."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.architecture.rules import RULES, machine_places
from tests.architecture.sources import CODE_FOLDERS, ROOT, Source, read_sources


@pytest.mark.slow
@pytest.mark.parametrize("name", RULES)
def test_the_code_keeps_the_rule(name: str) -> None:
    broken = [f"{source.place}:{problem}" for source in read_sources(*CODE_FOLDERS) for problem in RULES[name](source)]
    assert not broken, "\n".join([RULES[name].__doc__ or name, *broken])


BREAKS = [
    ("ranks_stay_in_their_place", "cclm/model/vision.py", "import torch.distributed as dist"),
    ("ranks_stay_in_their_place", "cclm/model/vision.py", "from torch import distributed"),
    ("ranks_stay_in_their_place", "cclm/train/loop.py", "import torch\ntorch.distributed.barrier()"),
    ("deepspeed_in_one_folder", "cclm/engine/plain.py", "from deepspeed.runtime import zero"),
    ("init_files_import_nothing", "cclm/data/__init__.py", "from .batch import Batch"),
    ("init_files_import_nothing", "cclm/data/__init__.py", "def late():\n    import torch"),
    ("model_carries_its_own_code", "cclm/model/text.py", "from cclm.model.layers import Block"),
    ("model_carries_its_own_code", "cclm/model/text.py", "from ..ops import fast"),
    ("model_carries_its_own_code", "cclm/model/text.py", "import jaxtyping"),
    ("model_carries_its_own_code", "cclm/model/text.py", "try:\n    import rich\nexcept ValueError:\n    pass"),
    ("model_carries_its_own_code", "cclm/model/parts/text.py", "import torch"),
    ("no_print", "shards/build.py", "print('hello')"),
    ("no_bare_except", "shards/build.py", "try:\n    x = 1\nexcept:\n    x = 2"),
    ("asserts_only_look", "shards/build.py", "assert x == todo.pop(0), 'in order'"),
    ("asserts_only_look", "shards/build.py", "assert next(steps) == 1"),
    ("files_stay_short", "shards/build.py", "x = 1\n" * 601),
    ("no_drawers", "cclm/data/utils.py", ""),
    ("nothing_from_one_machine", "shards/corpora/packages.py", "URL = 'https://py" + "pi.org/simple'"),
    ("nothing_from_one_machine", "shards/corpora/packages.py", "FOLDER = '/home" + "/ada/corpus'"),
]
KEEPS = [
    ("ranks_stay_in_their_place", "cclm/distributed/collectives.py", "import torch.distributed as dist"),
    ("ranks_stay_in_their_place", "cclm/model/vision.py", "import torch.distributions"),
    ("deepspeed_in_one_folder", "cclm/engine/deepspeed/engine.py", "import deepspeed"),
    ("init_files_import_nothing", "cclm/data/__init__.py", '"""What it is for."""'),
    ("init_files_import_nothing", "cclm/data/batch.py", "import torch"),
    ("model_carries_its_own_code", "cclm/model/text.py", "import math\nimport torch\nfrom .layers import Block"),
    ("model_carries_its_own_code", "cclm/model/text.py", "try:\n    import rich\nexcept ImportError:\n    pass"),
    ("no_print", "shards/build.py", "console.print('hello')"),
    ("no_bare_except", "shards/build.py", "try:\n    x = 1\nexcept OSError:\n    x = 2"),
    ("asserts_only_look", "shards/build.py", "assert len(todo) == 1, todo.pop(0)"),
    ("files_stay_short", "shards/build.py", "x = 1\n" * 600),
    ("no_drawers", "cclm/data/stream.py", ""),
    ("nothing_from_one_machine", "shards/corpora/packages.py", "FOLDER = 'runs/home/data/x'"),
]


@pytest.mark.parametrize(("name", "place", "text"), BREAKS)
def test_a_rule_sees_what_breaks_it(name: str, place: str, text: str) -> None:
    assert list(RULES[name](Source(place, text)))


@pytest.mark.parametrize(("name", "place", "text"), KEEPS)
def test_a_rule_lets_pass_what_keeps_it(name: str, place: str, text: str) -> None:
    assert not list(RULES[name](Source(place, text)))


def test_every_rule_has_an_example_that_breaks_it() -> None:
    assert {name for name, _, _ in BREAKS} == set(RULES)


def test_documents_and_settings_name_no_machine() -> None:
    suffixes = {".md", ".toml", ".txt", ".json", ".yaml", ".yml", ".j2"}
    folders = [ROOT / name for name in (*CODE_FOLDERS, "docs", "ds_configs", "tests", "benchmarks")]
    paths = [path for folder in folders for path in folder.rglob("*") if path.suffix in suffixes]
    paths += [path for path in ROOT.iterdir() if path.suffix in suffixes or path.name == "Makefile"]
    assert len(paths) > 2
    broken = [f"{path}:{problem}" for path in paths for problem in machine_places(path.read_text(encoding="utf-8"))]
    assert not broken, "\n".join(broken)


def test_the_linter_sees_every_file() -> None:
    """Its default excludes are names such as `dist` and `build`: a folder of that name would go unseen."""
    command = [sys.executable, "-m", "ruff", "check", "--show-files", "."]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=True).stdout.split(
        "\n"
    )
    seen = {Path(line).relative_to(ROOT).as_posix() for line in shown if line.endswith(".py")}
    there = {source.place for source in read_sources(*CODE_FOLDERS, "tests", "benchmarks")}
    assert there <= seen, sorted(there - seen)
