"""`cclm import`: a published file becomes a Hugging Face folder; or what the keys of a family are."""

from __future__ import annotations

import argparse
from pathlib import Path

from cclm.cli.say import add_command, say
from cclm.errors import ConfigError
from cclm.files.command_line import Commands


def add_to(commands: Commands) -> None:
    """Add `import`."""
    add = add_command(
        commands,
        "import",
        run,
        "convert a published CCLM file (.th, .pth) to a Hugging Face folder; every key is accounted for",
    )
    add("path", type=Path, nargs="?", help="the file, or a folder that `cclm export` wrote")
    add("--to", type=Path, help="the folder to make; replaces an older export or import only")
    add("--tokenizer", type=Path, help="tokenizer folder, or a hub name; with it the folder is complete and is checked")
    add("--image-size", type=int, help="pixels; other than the file's: position tables are interpolated")
    add("--text-heads", type=int, help="attention heads of the text encoder; without it: of width 64")
    add("--describe", help="only list the keys of a published family, without any file")


def run(options: argparse.Namespace) -> None:
    """Import and say what became of every key, or describe a family."""
    path, to = options.path, options.to
    if options.describe is not None:
        return say_keys(options.describe)
    if path is None or to is None:
        raise ConfigError(
            where="cclm import",
            expected="PATH --to DIR, or --describe FAMILY",
            got="neither",
            do="Name the published file and the folder to make.",
        )
    given = {"tokenizer": options.tokenizer, "image_size": options.image_size, "text_heads": options.text_heads}
    if path.is_dir():
        if names := [f"--{name.replace('_', '-')}" for name, value in given.items() if value is not None]:
            raise ConfigError(
                where=str(path),
                expected="a published file with these options",
                got=f"a folder, with {', '.join(names)}",
                do="Leave them out: a folder is written anew as it is.",
            )
        return import_again(path, to)
    from cclm.hub.import_folder import REPORT_NAME, import_file

    imported = import_file(path, to, **given)
    say(f"{path}: {imported.title}")
    say(f"{imported.report.summary()}; one by one in {to}/{REPORT_NAME}")
    if imported.parity is None:
        say(f"wrote {to} without tokenizer; give --tokenizer for a complete folder and a check that it works alone")
    else:
        say(f"wrote {to}; a fresh process computes the same: max |Δ| {imported.parity.max_abs:.1e}")
    return None


def import_again(folder: Path, to: Path) -> None:
    """Write an exported folder anew."""
    from cclm.hub.import_folder import import_export

    report = import_export(folder, to)
    say(f"wrote {to}: the weights of {folder} bit for bit, with the code of this version")
    say(report.table())


def say_keys(family: str) -> None:
    """List every key of a published family: name, shape, dtype, kind."""
    from math import prod

    from cclm.pretrained.families import FAMILIES
    from cclm.pretrained.import_cclm import describe

    if family not in FAMILIES:
        raise ConfigError(where="--describe", expected=" or ".join(FAMILIES), got=repr(family), do="Choose one.")
    rows = describe(FAMILIES[family])
    for name, shape, dtype, kind in rows:
        say(f"{name}\t{list(shape)}\t{dtype}\t{kind}")
    num_parameters = sum(prod(shape) for _, shape, _, kind in rows if kind == "param")
    say(f"# {family}: {len(rows)} keys, {num_parameters} parameters (tied counted once)")
