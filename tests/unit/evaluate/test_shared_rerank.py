"""Re-ranking in parts, shared out to ranks, gives what re-ranking all pairs at once gives."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import pytest
import torch
from torch import Tensor

from cclm.evaluate import rerank
from cclm.evaluate.rerank import Own, PairNumbers, Reranked, gathered, rerank_owned
from cclm.evaluate.retrieval import Nearest, nearest

TEXTS, IMAGES, TOP_K = 23, 17, 5


def found() -> tuple[Nearest, Nearest]:
    generator = torch.Generator().manual_seed(3)
    text_TE, image_CE = (torch.randn(count, 4, generator=generator) for count in (TEXTS, IMAGES))
    identity_T, identity_C = torch.arange(TEXTS) % IMAGES, torch.arange(IMAGES)
    there = nearest(text_TE, image_CE, identity_T, identity_C, TOP_K)
    return there, nearest(image_CE, text_TE, identity_C, identity_T, TOP_K)


def score(pairs: PairNumbers) -> Tensor:
    """A number for each pair, whatever it is scored with."""
    return torch.frac((pairs.texts * 31 + pairs.images * 17).double() * 0.61803).float()


def own(of: Nearest, numbers: Tensor) -> Own:
    return Own(number_Q=numbers, found=Nearest(**{name: value[numbers] for name, value in vars(of).items()}))


class Ranks:
    """Threads that exchange as ranks do."""

    def __init__(self, size: int) -> None:
        self.size, self._barrier, self._values = size, Barrier(size, timeout=60), [None] * size

    def exchange(self, rank: int) -> Callable[[Any], list[Any]]:
        def everyone(value: Any) -> list[Any]:
            self._values[rank] = value
            self._barrier.wait()
            values = list(self._values)
            self._barrier.wait()
            return values

        return everyone


@pytest.mark.parametrize("at_once", [1, 40, 1 << 22])
@pytest.mark.parametrize("size", [1, 2, 3])
def test_it_is_what_all_pairs_at_once_give(monkeypatch: pytest.MonkeyPatch, at_once: int, size: int) -> None:
    forward, backward = found()
    of_texts = torch.arange(TEXTS)[:, None] * IMAGES + forward.candidate_QK
    of_images = backward.candidate_QK * IMAGES + torch.arange(IMAGES)[:, None]
    num_pairs = len({*of_texts.flatten().tolist(), *of_images.flatten().tolist()})
    expected = [
        of.reranked(score(PairNumbers(number_P=number_QK, num_images=IMAGES)), 1e-4)
        for of, number_QK in ((forward, of_texts), (backward, of_images))
    ]
    monkeypatch.setattr(rerank, "PAIRS_AT_ONCE", at_once)
    ranks, sizes = Ranks(size), list[int]()

    def told(pairs: PairNumbers) -> Tensor:
        sizes.append(len(pairs.number_P))
        return score(pairs)

    def on_rank(rank: int) -> tuple[Reranked, dict[str, Tensor], dict[str, Tensor]]:
        exchange = ranks.exchange(rank)
        texts, images = (own(of, torch.arange(rank, len(of.rank_Q), size)) for of in (forward, backward))
        again = rerank_owned(texts, images, IMAGES, told, exchange)
        both = (texts, again.text_rank_Q), (images, again.image_rank_Q)
        return again, *(gathered(one.number_Q, {"rank": rank_Q}, exchange) for one, rank_Q in both)  # type: ignore[return-value]

    with ThreadPoolExecutor(size) as pool:
        for again, text_ranks, image_ranks in pool.map(on_rank, range(size)):
            assert again.num_pairs == num_pairs
            assert text_ranks["rank"].equal(expected[0]) and image_ranks["rank"].equal(expected[1])
    parts = sizes[::size]
    assert len(parts) == {1: IMAGES, 40: len(parts), 1 << 22: 1}[at_once]
    assert at_once != 40 or (3 <= len(parts) < IMAGES and max(sizes) <= 40 + TEXTS)
