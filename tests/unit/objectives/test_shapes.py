"""Every annotated shape of objectives and ops holds, and the annotations notice what is wrong."""

from __future__ import annotations

import pytest
import torch
from jaxtyping import TypeCheckError

from tests.unit.model.typed import typed_modules


def test_annotations_of_the_objectives() -> None:
    names = ("contrastive", "matching", "tokens")
    with typed_modules([f"cclm.objectives.{name}" for name in names]) as (contrastive, matching, tokens):
        first, second = torch.randn(4, 6), torch.randn(8, 6)
        identity = torch.arange(8) % 4
        for temperature in (0.1, torch.tensor([0.1])):
            assert contrastive.contrastive(first, second, identity[:4], identity, temperature).shape == ()
        with pytest.raises(TypeCheckError):
            contrastive.contrastive(first, second, identity, identity, 0.1)
        same, noise = identity[:4, None] == identity, torch.randn(4, 8)
        assert matching.draw_negatives(torch.randn(4, 8), same, noise, 0.5).shape == (4,)
        with pytest.raises(TypeCheckError):
            matching.draw_negatives(torch.randn(4, 8), same, noise[:, :7], 0.5)
        assert matching.matching(torch.randn(5, 2), torch.ones(5, dtype=torch.int64))[0].shape == (5,)
        with pytest.raises(TypeCheckError):
            matching.matching(torch.randn(5, 3), torch.ones(5, dtype=torch.int64))
        ids, mask = torch.zeros(2, 4, dtype=torch.int64), torch.ones(2, 4, dtype=torch.bool)
        assert tokens.answer_log_likelihood(torch.randn(2, 4, 9), ids, mask).shape == (2,)
        with pytest.raises(TypeCheckError):
            tokens.answer_log_likelihood(torch.randn(2, 4, 9), ids, mask[:, :3])


def test_annotations_of_the_losses_of_a_teacher() -> None:
    with typed_modules(["cclm.objectives.teacher"]) as (teacher,):
        student, theirs, row = torch.randn(4, 6), torch.randn(4, 8), torch.arange(4)
        for function in (teacher.relational_divergence, teacher.relational_reference):
            assert function(student, theirs, row, 0.1).shape == ()
            with pytest.raises(TypeCheckError):
                function(student, theirs, row[:3], 0.1)
        assert teacher.cosine_distance(theirs, theirs, row > 0).shape == ()
        with pytest.raises(TypeCheckError):
            teacher.cosine_distance(student, theirs, row > 0)
        every = student, theirs, row
        assert teacher.relation_logs(every, every, 0.1).shape == (4, 2)


def test_annotations_of_the_box_losses() -> None:
    with typed_modules(["cclm.objectives.boxes", "cclm.objectives.matching"]) as (boxes, matching):
        distance, _ = boxes.box_losses(torch.rand(3, 4), torch.rand(3, 4))
        assert distance.shape == (3,)
        with pytest.raises(TypeCheckError):
            boxes.box_losses(torch.rand(3, 4), torch.rand(3, 5))
        assert matching.negative_weights(torch.randn(2, 3), torch.zeros(2, 3, dtype=torch.bool)).shape == (2, 3)


def test_annotations_of_the_ops() -> None:
    with typed_modules(["cclm.ops.linear_cross_entropy"]) as (module,):
        inputs = torch.randn(3, 6), torch.randn(9, 6), torch.zeros(9), torch.tensor([0, 1, 8])
        for function in (module.linear_cross_entropy, module.linear_cross_entropy_reference):
            losses = function(*inputs, torch.ones(3))
            assert losses.total.shape == ()
            assert losses.loss_T.shape == losses.correct_T.shape == (3,)
            with pytest.raises(TypeCheckError):
                function(inputs[0][:2], *inputs[1:])
            with pytest.raises(TypeCheckError):
                function(*inputs, torch.ones(4))
    with typed_modules(["cclm.ops.contrastive"]) as (module,):
        first, second, identity = torch.randn(4, 6), torch.randn(8, 6), torch.arange(8) % 4
        for function in (module.contrastive_loss, module.contrastive_reference):
            assert function(first, second, identity[:4], identity, torch.tensor([0.1])).shape == ()
            with pytest.raises(TypeCheckError):
                function(first, second, identity, identity, torch.tensor([0.1]))
