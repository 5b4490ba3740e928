"""What a view's teacher adds to a step: what ranks tell each other of it, and the loss of each side.

view/taught/side/counts    rows with a feature of the teacher, and all rows
                /student, /teacher, /row     relational: features of both models, number of each row
                /logs      relational: log-sum-exps over all rows, of this rank's rows, then of all
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from cclm.data.batch import ViewBatch
from cclm.data.config import Views
from cclm.data.options import TeacherConfig
from cclm.distributed.agreement import hash63
from cclm.objectives.teacher import AllTaught, Relations, cosine_distance, relation_logs, relational_divergence


def teacher_maps(views: Views, width: int, seed: int) -> nn.ModuleDict:
    """Return the linear maps, by view, from features of the model's `width` to those of a teacher of another width.

    They belong to the training module, and so to checkpoints, and not to the network and its exports.
    """
    maps = nn.ModuleDict()
    for name, view in views.items():
        teacher = view.teacher
        if teacher is not None and teacher.form == "cosine" and teacher.width != width:
            linear = maps[name] = nn.Linear(width, teacher.width, bias=False)
            generator = torch.Generator().manual_seed(hash63(f"teacher:{seed}:{name}"))
            nn.init.normal_(linear.weight, std=width**-0.5, generator=generator)
    return maps


def told_of_teacher(
    name: str, batch: ViewBatch, features: Mapping[str, Tensor], teacher: TeacherConfig | None
) -> Iterator[tuple[str, Tensor]]:
    """Yield what other ranks need of this rank's share of a view; `features`: the student's, by side."""
    for side, rows in batch.taught.items():
        key = f"{name}/taught/{side}"
        yield f"{key}/counts", torch.stack([(rows.row_N >= 0).sum(), rows.row_N.new_tensor(len(rows.row_N))])[None]
        if teacher is not None and teacher.form == "relational":
            yield from (
                (f"{key}/student", features[side]),
                (f"{key}/teacher", rows.feature_NT),
                (f"{key}/row", rows.row_N),
            )


def logs_of_relations(own: Mapping[str, Tensor], shared: Mapping[str, Tensor], views: Views) -> dict[str, Tensor]:
    """Return the log-sum-exps of this rank's rows for the relational losses, by `view/taught/side/logs`."""
    found = {}
    for key in [name.removesuffix("/row") for name in own if name.endswith("/row")]:
        teacher = views[key.partition("/")[0]].teacher
        assert teacher is not None, "it has told its rows"
        mine, every = (_relations(key, of) for of in (own, shared))
        found[f"{key}/logs"] = relation_logs(mine, every, teacher.temperature)
    return found


def taught_losses(
    name: str,
    batch: ViewBatch,
    features: Mapping[str, Tensor],
    teacher: TeacherConfig,
    maps: nn.ModuleDict,
    shared: Mapping[str, Tensor] | None,
) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Yield each side, the sum of its loss over this rank's rows, and how many of these the teacher knows.

    `shared`: what all ranks have told; None: this process holds all rows.
    """
    students = {side: features[side] for side in batch.taught}
    if name in maps:  # each module once: all sides in one call
        sizes = [len(one) for one in students.values()]
        mapped = torch.split(maps[name](torch.cat([*students.values()])), sizes)
        students = dict(zip(students, mapped, strict=True))
    for side, rows in batch.taught.items():
        is_known_N = rows.row_N >= 0
        if teacher.form == "cosine":
            total = cosine_distance(students[side], rows.feature_NT, is_known_N)
        else:
            key = f"{name}/taught/{side}"
            every = None if shared is None else AllTaught(*_relations(key, shared), shared[f"{key}/logs"])
            total = relational_divergence(students[side], rows.feature_NT, rows.row_N, teacher.temperature, every)
        yield side, total, is_known_N.sum()


def _relations(key: str, told: Mapping[str, Tensor]) -> Relations:
    return told[f"{key}/student"], told[f"{key}/teacher"], told[f"{key}/row"]
