"""`cclm doctor`: which kernels would compute a run here, with versions and devices."""

from __future__ import annotations

import argparse

from cclm.files.command_line import Commands, add_command, say
from cclm.files.text import table


def add_to(commands: Commands) -> None:
    """Add `doctor`."""
    add = add_command(commands, "doctor", diagnose)
    add("--device", default="auto", help="auto (a GPU if there is one), cpu or cuda")
    add("--stage", type=int, default=3, help="ZeRO stage of the run")


def diagnose(options: argparse.Namespace) -> None:
    """Say what attention, norms, losses and updates would be computed with here, what else there is, and why not."""
    import torch

    from cclm.ops.choice import choose_model_kernels, choose_optimizer, describe
    from cclm.ops.options import KernelConfig

    is_cuda = options.device == "cuda" or (options.device == "auto" and torch.cuda.is_available())
    device = torch.device("cuda" if is_cuda else "cpu")
    choices = (
        *choose_model_kernels(KernelConfig(), device).choices,
        choose_optimizer("auto", device, stage=options.stage),
    )
    found = describe(choices, device)
    rows = []
    for one in choices:
        others = [f"{name}: {trouble or 'could run'}" for name, trouble in one.candidates.items() if name != one.chosen]
        rows.append((one.op, one.chosen, one.why, "; ".join(others)))
    say(table(("computes", "kernel", "why", "others"), rows))
    say("versions: " + ", ".join(f"{name} {version}" for name, version in found["versions"].items()))
    say("devices: " + ", ".join(found["devices"]))
