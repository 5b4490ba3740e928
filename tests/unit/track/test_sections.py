from __future__ import annotations

import torch
from torch import Tensor

from cclm.track.sections import NO_CLOCK, SectionClock


class Clock:
    """Moves only when told to."""

    def __init__(self) -> None:
        self.now = 50.0

    def __call__(self) -> float:
        return self.now


class Work(torch.autograd.Function):
    """The identity, which takes `forward_s` and `backward_s` seconds."""

    @staticmethod
    def forward(ctx, x: Tensor, clock: Clock, forward_s: float, backward_s: float) -> Tensor:  # type: ignore[no-untyped-def]
        ctx.clock, ctx.backward_s = clock, backward_s
        clock.now += forward_s
        return x.clone()

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None, None]:  # type: ignore[no-untyped-def]
        ctx.clock.now += ctx.backward_s
        return gradient, None, None, None


def work(x: Tensor, clock: Clock, forward_s: float, backward_s: float) -> Tensor:
    done: Tensor = Work.apply(x, clock, forward_s, backward_s)  # type: ignore[no-untyped-call]
    return done


def test_seconds_of_sections_inside_each_other() -> None:
    clock = Clock()
    sections = SectionClock(clock=clock)
    clock.now += 1.0
    with sections.inside("data"):
        clock.now += 2.0
        with sections.inside("communication"):
            clock.now += 4.0
        clock.now += 8.0
    clock.now += 16.0
    assert sections.seconds() == {"other": 17.0, "data": 10.0, "communication": 4.0}
    clock.now += 0.5
    assert sections.seconds() == {"other": 0.5}, "each second is told once"


def test_the_backward_pass_says_where_it_is() -> None:
    """Text is encoded first, then images; a loss reads both, and a second one between them only the text."""
    clock = Clock()
    sections = SectionClock(clock=clock)
    x = torch.ones(3, requires_grad=True)
    sections.enter("losses")
    with sections.inside("text"):
        text = work(x, clock, 1.0, 10.0)
    text = sections.on_backward(text, "text")
    with sections.inside("vision"):
        image = work(x * 2, clock, 2.0, 20.0)
    image = sections.on_backward(image, "vision")
    first = work(text * image, clock, 4.0, 40.0)
    second = work(sections.on_backward(text + image, "losses"), clock, 8.0, 80.0)
    with sections.inside("fusion"):
        fused = work(second, clock, 16.0, 160.0)
    fused = sections.on_backward(fused, "fusion")
    loss = (first + fused).sum()
    loss.backward()
    clock.now += 0.25
    found = sections.seconds()
    assert found["fusion"] == 16.0 + 160.0 + 80.0, "up to the mark behind `second`"
    assert found["losses"] == 4.0 + 8.0 + 40.0
    assert (found["vision"], found["text"]) == (22.0, 11.25)
    expected = torch.autograd.grad((x * (x * 2) + x + x * 2).sum(), x)[0]
    assert torch.equal(x.grad, expected), "marks change no gradient"


def test_a_clock_that_is_not_enabled_marks_nothing() -> None:
    x = torch.ones(2, requires_grad=True)
    assert NO_CLOCK.on_backward(x, "text") is x
    with NO_CLOCK.inside("data"):
        assert NO_CLOCK.seconds() == {}
    frozen = torch.ones(2)
    assert SectionClock().on_backward(frozen, "text") is frozen
