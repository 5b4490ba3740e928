"""The facts of a run, read from the plain files of its folder: what a model card and a report are made of.

run folder ── config.yaml, results.json, parity.json, gallery.json, stages.json or seconds.json
shard sets named in config.yaml ── manifest.json
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from cclm.errors import CclmError

RESULTS_NAME = "results.json"
GALLERY_NAME = "gallery.json"
PARITY_NAME = "parity.json"
STAGES_NAME = "stages.json"
SECONDS_NAME = "seconds.json"

PACKAGES = ("torch", "deepspeed", "transformers", "tokenizers", "webdataset", "pyarrow", "numpy", "pillow")
"""Packages whose versions decide numbers."""

ATTRIBUTIONS = {
    "Apache-2.0": "https://www.apache.org/licenses/LICENSE-2.0",
    "MIT": "https://opensource.org/license/mit",
    "CC-BY-4.0": "https://creativecommons.org/licenses/by/4.0/",
    "CC-BY-SA-4.0": "https://creativecommons.org/licenses/by-sa/4.0/",
    "Unicode-3.0": "https://www.unicode.org/license.txt",
}
"""Where the text of a licence stands, by SPDX tag."""


@dataclass(frozen=True, kw_only=True)
class SetFacts:
    """One shard set."""

    role: str
    """"training pictures", "training pairs", "test" or "dev"."""
    folder: str
    view: str
    """"image_text" or "text_pair"."""
    samples: int
    """Pictures, or sentences with their translations."""
    rows: int
    """Captions, or pairs."""
    size_bytes: int
    languages: Mapping[str, int]
    sources: Mapping[str, int]
    licences: Mapping[str, int]
    command: str
    """The command that made it."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage of a demonstration."""

    name: str
    command: str
    seconds: float | None = None


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """Everything known about a run."""

    name: str
    config: Mapping[str, Any]
    """config.yaml."""
    results: Mapping[str, Any]
    """results.json; empty if the run was not measured."""
    gallery: Sequence[Mapping[str, Any]]
    """gallery.json; empty if there is none."""
    parity: Mapping[str, Any]
    """parity.json of the export; empty if there is none."""
    sets: Sequence[SetFacts]
    stages: Sequence[Stage]
    environment: Mapping[str, str]
    """Hardware and versions of this machine."""

    @property
    def seed(self) -> int | None:
        """The run's seed."""
        return self.config.get("seed")

    @property
    def steps(self) -> int | None:
        """Optimizer updates."""
        return (self.config.get("optimizer") or {}).get("total_steps")


def read_facts(folder: Path) -> RunFacts:
    """Read what a run folder knows about itself.

    Raises:
        CclmError: there is no config.yaml.
    """
    path = folder / "config.yaml"
    if not path.exists():
        raise CclmError(
            where=str(folder),
            expected="a run folder (config.yaml)",
            got="none",
            do="Give the folder that `python -m pretrain` wrote.",
        )
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    results = read_json(folder / RESULTS_NAME, {})
    sets = read_sets(config, results)
    return RunFacts(
        name=folder.resolve().name,
        config=config,
        results=results,
        gallery=read_json(folder / GALLERY_NAME, []),
        parity=read_json(folder / PARITY_NAME, {}),
        sets=sets,
        stages=read_stages(folder, results),
        environment=environment(),
    )


def read_json(path: Path, default: Any) -> Any:
    """Return the contents of a JSON file, or `default` if there is none."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else default


def read_sets(config: Mapping[str, Any], results: Mapping[str, Any]) -> list[SetFacts]:
    """Return the facts of the sets that the run read and of those it was measured on; missing ones are left out."""
    data = config.get("data") or {}
    folders = [
        (role, folder)
        for role, view in (("training pictures", "image_text"), ("training pairs", "text_pair"))
        for folder in (data.get(view) or {}).get("shards") or ()
    ]
    for role, found in (("test", results), ("dev", results.get("dev") or {})):
        if "set" in found:
            folders.append((role, found["set"]["shards"]))
    return [set_facts(role, Path(folder)) for role, folder in folders if (Path(folder) / "manifest.json").exists()]


def set_facts(role: str, folder: Path) -> SetFacts:
    """Return the facts of one set, from its manifest."""
    manifest = read_json(folder / "manifest.json", {})
    totals = manifest["totals"]
    return SetFacts(
        role=role,
        folder=str(folder),
        view=manifest["view"],
        samples=totals["samples"],
        rows=totals["rows"],
        size_bytes=totals["size_bytes"],
        languages=totals["languages"],
        sources=totals["sources"],
        licences=totals["licences"],
        command=manifest.get("command", ""),
    )


def read_stages(folder: Path, results: Mapping[str, Any]) -> list[Stage]:
    """Return the stages: from stages.json ([{"name", "command", "seconds"}]), else seconds.json or results.json."""
    listed = read_json(folder / STAGES_NAME, None)
    if listed is not None:
        return [Stage(name=row["name"], command=row.get("command", ""), seconds=row.get("seconds")) for row in listed]
    seconds = read_json(folder / SECONDS_NAME, None) or results.get("seconds") or {}
    return [Stage(name=name, command="", seconds=value) for name, value in seconds.items()]


def environment() -> dict[str, str]:
    """Return the hardware and the versions of this machine, without importing what it names."""
    found = {
        "machine": f"{os.cpu_count()} × {processor_name()}, {platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def processor_name() -> str:
    """Return the processor's name as the system tells it."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
