"""The table of tasks: the only place that lists them."""

from __future__ import annotations

from collections.abc import Mapping

from finetune.tasks import cvqa, marvl, nlvr2, refcoco, retrieval, vqa, xgqa, xvnli
from finetune.tasks.task import Task

TASKS: Mapping[str, Task] = {
    "xvnli": xvnli.TASK,
    "marvl": marvl.TASK,
    "nlvr2": nlvr2.TASK,
    "retrieval": retrieval.TASK,
    **retrieval.BENCHMARKS,
    "xgqa": xgqa.TASK,
    "cvqa": cvqa.TASK,
    "vqa": vqa.TASK,
    "refcoco": refcoco.TASK,
}
"""By name, which is that of the recipe, too."""
