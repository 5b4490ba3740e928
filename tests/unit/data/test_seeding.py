from __future__ import annotations

import numpy as np

from cclm.data.seeding import Purpose, keyed_generator


def first(seed: int, purpose: int, source: int, place: tuple[int, int, int]) -> tuple[float, ...]:
    return tuple(keyed_generator(seed, purpose, source, place).random(4))


def test_the_same_place_gives_the_same_numbers() -> None:
    assert first(7, 3, 0, (0, 1, 5)) == first(7, 3, 0, (0, 1, 5))


def test_every_part_of_the_place_matters() -> None:
    places = [(7, 3, 0, (0, 1, 5)), (8, 3, 0, (0, 1, 5)), (7, 4, 0, (0, 1, 5)), (7, 3, 1, (0, 1, 5))]
    places += [(7, 3, 0, (0, 2, 5)), (7, 3, 0, (0, 1, 6)), (7, 3, 0, (0, 5, 1)), (7, 3, 0, (1, 1, 5))]
    assert len({first(*place) for place in places}) == len(places)
    purposes = {first(7, purpose, source, (1, 2, 3)) for purpose in (*Purpose, 3, 4, 5, 6, 16) for source in range(3)}
    assert len(purposes) == 3 * (len(Purpose) + 5)


def test_any_integer_is_a_seed() -> None:
    seeds = (-1, 0, 2**64 - 2, 2**63)
    assert len({first(seed, 3, 0, (0, 0, 0)) for seed in seeds}) == 4


def test_the_numbers_stay_what_they_were() -> None:
    # a run can be replayed only as long as these do not change: purpose 3 is image_text's, (0, epoch, position)
    values = keyed_generator(1, 3, 0, (0, 2, 3)).random(2)
    assert values.tolist() == [0.1999706247670644, 0.7447759315910418]


def test_neighbours_are_unrelated() -> None:
    draws = np.array([keyed_generator(0, 4, 0, (0, 0, position)).random(8) for position in range(2000)])
    correlation = np.corrcoef(draws[:-1].ravel(), draws[1:].ravel())[0, 1]
    assert abs(correlation) < 0.03  # 1/sqrt(16,000) is 0.008
    assert abs(draws.mean() - 0.5) < 0.01
