from __future__ import annotations

from cclm.track.metrics import Throughput


class Clock:
    """A clock that moves only when told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_window_of_two_steps() -> None:
    clock = Clock()
    throughput = Throughput(clock=clock)
    for _ in range(2):
        clock.now += 2.0
        throughput.step({"image_text": 8, "text_pair": 24})
    assert throughput.summary() == {
        "speed/step_s": 2.0,
        "speed/samples_per_s": 16.0,
        "speed/image_text_samples_per_s": 4.0,
        "speed/text_pair_samples_per_s": 12.0,
    }


def test_a_summary_opens_a_new_window() -> None:
    clock = Clock()
    throughput = Throughput(clock=clock)
    clock.now += 10.0
    throughput.step({"image_text": 8})
    throughput.summary()
    clock.now += 1.0
    throughput.step({"text_pair": 3})
    assert throughput.summary() == {
        "speed/step_s": 1.0,
        "speed/samples_per_s": 3.0,
        "speed/text_pair_samples_per_s": 3.0,
    }


def test_an_empty_window_has_no_numbers() -> None:
    clock = Clock()
    throughput = Throughput(clock=clock)
    assert throughput.summary() == {}
    clock.now += 1.0
    assert throughput.summary() == {}


def test_restart_forgets_a_pause() -> None:
    clock = Clock()
    throughput = Throughput(clock=clock)
    throughput.step({"image_text": 1000})
    clock.now += 1000.0
    throughput.restart()
    clock.now += 2.0
    throughput.step({"image_text": 4})
    assert throughput.summary()["speed/samples_per_s"] == 2.0
