from __future__ import annotations

import numpy as np

from cclm.data.seeding import Purpose, keyed_generator, sample_generator
from cclm.types import View


def first(generator: np.random.Generator) -> tuple[float, ...]:
    return tuple(generator.random(4))


def test_the_same_place_gives_the_same_numbers() -> None:
    assert first(sample_generator(7, View.IMAGE_TEXT, 1, 5)) == first(sample_generator(7, View.IMAGE_TEXT, 1, 5))


def test_every_part_of_the_place_matters() -> None:
    places = [(7, View.IMAGE_TEXT, 1, 5), (8, View.IMAGE_TEXT, 1, 5), (7, View.TEXT_PAIR, 1, 5)]
    places += [(7, View.IMAGE_TEXT, 2, 5), (7, View.IMAGE_TEXT, 1, 6), (7, View.IMAGE_TEXT, 5, 1)]
    assert len({first(sample_generator(*place)) for place in places}) == len(places)
    sources = [keyed_generator(7, purpose, source, (1, 2, 3)) for purpose in Purpose for source in range(3)]
    assert len({first(generator) for generator in sources}) == 3 * len(Purpose)


def test_any_integer_is_a_seed() -> None:
    seeds = (-1, 0, 2**64 - 2, 2**63)
    assert len({first(sample_generator(seed, View.IMAGE_TEXT, 0, 0)) for seed in seeds}) == 4


def test_the_numbers_stay_what_they_were() -> None:
    # a run can be replayed only as long as these do not change
    values = sample_generator(1, View.IMAGE_TEXT, 2, 3).random(2)
    assert values.tolist() == [0.1999706247670644, 0.7447759315910418]


def test_neighbours_are_unrelated() -> None:
    draws = np.array([sample_generator(0, View.TEXT_PAIR, 0, position).random(8) for position in range(2000)])
    correlation = np.corrcoef(draws[:-1].ravel(), draws[1:].ravel())[0, 1]
    assert abs(correlation) < 0.03  # 1/sqrt(16,000) is 0.008
    assert abs(draws.mean() - 0.5) < 0.01
