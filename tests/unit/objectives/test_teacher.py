"""What pulls features to a teacher's, against plain formulas and PyTorch's own gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from cclm.objectives.teacher import (
    AllTaught,
    cosine_distance,
    relation_logs,
    relational_divergence,
    relational_reference,
)

TEMPERATURE = 0.3


def features(count: int = 9) -> tuple[Tensor, Tensor, Tensor]:
    """Of student and teacher, and the rows' numbers: two have no feature of the teacher."""
    student, teacher = (functional.normalize(torch.randn(count, width, dtype=torch.float64)) for width in (5, 7))
    row = torch.arange(10, 10 + count)
    row[[2, 6]] = -1
    return student.requires_grad_(), teacher, row


def test_cosine_distance_of_known_rows() -> None:
    student, teacher, row = features()
    student = torch.randn(9, 7, dtype=torch.float64, requires_grad=True)
    found = cosine_distance(student, teacher, row >= 0)
    expected = sum(
        1 - student[one] @ teacher[one] / (student[one].norm() * teacher[one].norm())
        for one in range(9) if one not in (2, 6)
    )  # fmt: skip
    torch.testing.assert_close(found, expected)
    (gradient,) = torch.autograd.grad(found, student)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, student)[0])
    assert not gradient[[2, 6]].any()
    assert cosine_distance(3 * teacher, teacher, row >= 0).item() == pytest.approx(0, abs=1e-12)


def test_the_divergence_is_that_of_the_plain_formula() -> None:
    student, teacher, row = features()
    found, expected = (
        function(student, teacher, row, TEMPERATURE) for function in (relational_divergence, relational_reference)
    )
    torch.testing.assert_close(found, expected)
    assert found.item() > 0.1
    ours, theirs = (torch.autograd.grad(one, student)[0] for one in (found, expected))
    torch.testing.assert_close(ours, theirs)
    assert not ours[[2, 6]].any() and ours[[0, 1, 3]].any()


def test_a_student_that_relates_as_its_teacher_does_has_no_loss() -> None:
    _, teacher, row = features()
    turned = teacher @ torch.linalg.qr(torch.randn(7, 7, dtype=torch.float64))[0]
    turned.requires_grad_()
    found = relational_divergence(turned, teacher, row, TEMPERATURE)
    assert found.item() == pytest.approx(0, abs=1e-12)
    torch.testing.assert_close(torch.autograd.grad(found, turned)[0], torch.zeros_like(turned))


@pytest.mark.parametrize(("sizes", "block"), [([9], 1024), ([9], 2), ([4, 5], 3), ([1, 6, 2], 1024)])
def test_shares_of_the_rows_add_up(sizes: list[int], block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Values and gradients of this rank's rows against all rows, some of them at a time."""
    monkeypatch.setattr("cclm.objectives.teacher.ROWS_PER_BLOCK", block)
    student, teacher, row = features()
    every = student.detach(), teacher, row
    logs = relation_logs(every, every, TEMPERATURE)
    known = AllTaught(*every, logs)
    whole = relational_reference(student, teacher, row, TEMPERATURE)
    total = torch.zeros((), dtype=torch.float64)
    for own_student, own_teacher, own_row in zip(
        *(torch.split(one, sizes) for one in (student, teacher, row)), strict=True
    ):
        total = total + relational_divergence(own_student, own_teacher, own_row, TEMPERATURE, known)
    torch.testing.assert_close(total, whole)
    ours, theirs = (torch.autograd.grad(one, student)[0] for one in (total, whole))
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("num_known", [0, 1])
def test_rows_without_any_other_have_no_relations(num_known: int) -> None:
    student, teacher, row = features()
    row[num_known:] = -1
    found = relational_divergence(student, teacher, row, TEMPERATURE)
    assert found.item() == 0
    assert not torch.autograd.grad(found, student)[0].any()


def test_half_precision_is_widened() -> None:
    student, teacher, row = features()
    exact = relational_divergence(student, teacher, row, TEMPERATURE)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = relational_divergence(student.float(), teacher.half(), row, TEMPERATURE)
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(exact.item(), rel=2e-3)  # the teacher's float16: 5e-4 of each number
