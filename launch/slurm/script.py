"""A plan as a batch script that people can read, edit and submit by hand."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from cclm.files.shipped import open_template
from launch.plan.slurm_job import SlurmPlan, SweepPlan, option

JOB_TEMPLATE, ARRAY_TEMPLATE, SWEEP_TEMPLATE = "job.sh.j2", "array.sh.j2", "sweep.sh.j2"
BANDWIDTH = ("-m", "cclm.distributed.bandwidth")
"""The program that measures the network, one process per rank."""


def render(plan: SlurmPlan) -> str:
    """Return the text of the batch script."""
    own = [word for word in plan.srun_options if word.startswith("--container") or word.startswith("--no-container")]
    counted = [word for word in plan.srun_options if word not in own]
    return _fill(
        ARRAY_TEMPLATE if plan.request.array else JOB_TEMPLATE,
        plan=plan,
        script=plan.script,
        # --wait: seconds from the first rank's end to the others'; the exit code is told per rank in RUN/status.
        step_options=" \\\n    ".join(["--kill-on-bad-exit=1 --wait=60", *map(shlex.quote, own)]),
        srun_options=shlex.join(counted),
        wrapped=shlex.join([*plan.task_prefix, plan.python]),
        command=_on_lines(plan.command),
        bandwidth=shlex.join([plan.python, *BANDWIDTH]),
    )


def render_sweep(plan: SweepPlan) -> str:
    """Return the text of a sweep's batch script: each task runs the script of its point."""
    return _fill(SWEEP_TEMPLATE, plan=plan)


def _fill(name: str, **values: Any) -> str:
    """A shell script: every value goes through shlex.quote."""
    template = open_template(Path(__file__).with_name(name), html=False)
    return str(template.render(quote=lambda value: shlex.quote(str(value)), option=option, **values))


def _on_lines(command: tuple[str, ...]) -> str:
    """A command in shell words; a long one with one option a line."""
    text = shlex.join(command)
    if len(text) <= 100:
        return text
    lines: list[list[str]] = [[]]
    for word in command:
        if word.startswith("-") and lines[-1]:
            lines.append([])
        lines[-1].append(word)
    return " \\\n    ".join(shlex.join(line) for line in lines)
