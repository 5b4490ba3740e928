"""The code that a job will run, copied into its run folder: later edits do not change a queued job.

RUN/code/            the programs and the library; folders of data beside them are links into the checkout
RUN/code.sha256      one hash over all copied files; preflight compares it on every node
"""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

from cclm.files.atomic import replace_text

CODE = "code"
HASH_NAME = "code.sha256"
COPIED = ("cclm", "pretrain", "finetune", "shards", "launch", "ds_configs", "pyproject.toml")
"""What a job may need of the checkout; what does not exist is left out."""
NOT_COPIED = shutil.ignore_patterns("__pycache__", "*.pyc")
NOT_LINKED = frozenset({*COPIED, "tests", "docs", "benchmarks", "build", "dist"})


def take_snapshot(checkout: Path, run_folder: Path, *, anew: bool = False) -> str:
    """Copy the code into the run folder, unless an earlier submission did (`anew`: replace it); return its hash."""
    code = run_folder / CODE
    if code.exists() and not anew and (run_folder / HASH_NAME).exists():
        return (run_folder / HASH_NAME).read_text(encoding="utf-8").strip()
    partial = run_folder / f".{CODE}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for name in COPIED:
        source = checkout / name
        if source.is_dir():
            shutil.copytree(source, partial / name, ignore=NOT_COPIED)
        elif source.is_file():
            shutil.copy2(source, partial / name)
    for source in sorted(checkout.iterdir()):
        if source.is_dir() and source.name[0] != "." and source.name not in NOT_LINKED:
            (partial / source.name).symlink_to(source.resolve())
    (run_folder / HASH_NAME).unlink(missing_ok=True)
    if code.is_symlink():  # a point of a sweep leaves the code that it shared with the others
        code.unlink()
    shutil.rmtree(code, ignore_errors=True)
    partial.rename(code)
    found = code_hash(code)
    replace_text(run_folder / HASH_NAME, found + "\n")
    return found


def code_hash(code: Path) -> str:
    """Hash names and bytes of all files of a snapshot; links are not followed."""
    digest = hashlib.sha256()
    found = (Path(folder, name) for folder, _, names in os.walk(code) for name in names)
    for path in sorted(path for path in found if not path.is_symlink() and path.parent.name != "__pycache__"):
        data = path.read_bytes()
        digest.update(f"{path.relative_to(code).as_posix()} {len(data)}\n".encode() + data)
    return digest.hexdigest()
