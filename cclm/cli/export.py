"""`cclm export`: a Hugging Face folder that works alone, and the proof of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from cclm.cli.say import say
from cclm.errors import ConfigError

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser


def make_parser() -> ArgumentParser:
    """Options of `cclm export`."""
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(
        description="Write a Hugging Face folder, and prove in a fresh process that it works alone."
    )
    parser.add_argument("run", type=str, help="a run folder, or one checkpoint inside it")
    parser.add_argument("--to", type=str, required=True, help="the folder to make; replaces an older export only")
    parser.add_argument("--dtype", type=str, default="float32", help="float32, bfloat16 or float16")
    parser.add_argument("--tolerance", type=float | None, help="largest difference allowed; without it: by dtype")
    return parser


def run(run: str, to: str, dtype: str = "float32", tolerance: float | None = None) -> None:
    """Export, print the proof."""
    from cclm.atomic import replace_text
    from cclm.checkpoint.export import TOLERANCE, export
    from cclm.checkpoint.model_card import model_card
    from cclm.checkpoint.open import open_model
    from cclm.track.facts import PARITY_NAME, read_facts

    chosen = next((name for name in TOLERANCE if name == dtype), None)
    if chosen is None:
        raise ConfigError(where="--dtype", expected=" or ".join(TOLERANCE), got=repr(dtype), do="Choose one of these.")
    opened = open_model(Path(run))
    if opened.run_folder is None:
        raise ConfigError(where=run, expected="a run or a checkpoint", got="an export", do="Copy the folder.")
    facts = read_facts(opened.run_folder, opened.checkpoint)
    num_parameters = opened.model.num_parameters()
    report = export(
        opened,
        Path(to),
        card=lambda parity: model_card(facts, parity, num_parameters),
        dtype=chosen,
        tolerance=tolerance,
    )
    replace_text(opened.run_folder / PARITY_NAME, report.as_json())
    say(f"exported {opened.origin} to {to}")
    say(
        f"a fresh process with transformers alone computes the same: max |Δ| {report.max_abs:.1e} "
        f"(images {report.image_features.max_abs:.1e}, texts {report.text_features.max_abs:.1e}, "
        f"matching logits {report.match_logits.max_abs:.1e}; allowed {report.tolerance:g})"
    )
