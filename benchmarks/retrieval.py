"""Retrieval with re-ranking in blocks, beside the naive way: time and peak memory.

    python -m benchmarks.retrieval [--images 10000] [--texts 50000] [--top-k 128] [--queries 1000] [--json PATH]

Both sides run the same small random network on the same made-up images and texts, each in a process of its own:

    blocks   as fine-tuning measures (`cclm/evaluate`): similarities in blocks, each pair once, states of a block
    dense    as published: all states kept, the whole matrix of similarities, then the candidates of each query

A candidate of a query is one pass of the fusion encoder: re-ranking all 60,000 queries is 7.7 million of them, an hour
of a core even here. So both sides re-rank the same first `--queries` of each direction (0: all), among all candidates;
features, states and similarities are those of all images and texts. Memory is the highest resident size that the
kernel saw (VmHWM, the interpreter and torch included), time is CPU time of one thread. The ranks of both sides are
compared.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.figures import add_json_option, write_figures
from cclm.evaluate.embed import encode_images, encode_texts
from cclm.evaluate.pair_scores import PairBatch, match_scores, score_pairs
from cclm.evaluate.rerank import SCORE_TOLERANCE, Own, PairNumbers, rerank_owned
from cclm.evaluate.retrieval import Nearest, nearest, ranks
from cclm.model.configuration_cclm import CCLMConfig
from cclm.model.modeling_cclm import CCLMModel
from cclm.run.machine import process_memory_bytes

LAYERS: dict[str, Any] = {"num_layers": 1, "num_heads": 2, "feedforward_width": 64}
MODEL: dict[str, Any] = {
    "width": 32,
    "projection_width": 32,
    "matching_width": 32,
    "vision": {**LAYERS, "image_size": 16, "stem_channels": [8, 16], "stem_norm": "layer"},
    "text": {**LAYERS, "vocab_size": 1000, "max_positions": 16},
    "fusion": LAYERS,
}
SIDES = ("blocks", "dense")
BATCH = 64
"""Images, or texts, at a time."""
LEAST_EQUAL = 0.999
"""Share of ranks: products of other shapes round differently, which decides between scores as far apart as a tie is."""
SHORTEST, LONGEST = 4, 12
"""Tokens of a text."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is measured."""

    images: int
    texts: int
    top_k: int
    queries: int
    """Of each direction that are re-ranked."""


class Data:
    """Made-up images and texts, and a network; text t belongs to image t modulo their number."""

    def __init__(self, case: Case) -> None:
        generator = torch.Generator().manual_seed(0)
        self.pixels_C3HW = torch.randint(0, 256, (case.images, 3, 16, 16), dtype=torch.uint8, generator=generator)
        self.length_T = torch.randint(SHORTEST, LONGEST + 1, (case.texts,), generator=generator)
        ids_TL = torch.randint(4, 1000, (case.texts, LONGEST), generator=generator)
        self.mask_TL = torch.arange(LONGEST) < self.length_T[:, None]
        self.ids_TL = ids_TL.masked_fill(~self.mask_TL, 1)
        self.identity_C = torch.arange(case.images)
        self.identity_T = torch.arange(case.texts) % case.images
        torch.manual_seed(0)
        self.model = CCLMModel(CCLMConfig(**MODEL)).eval()
        for parameter in self.model.matching_head.parameters():  # type: ignore[union-attr]
            parameter.data *= 20.0  # scores that differ by more than what counts as a tie

    def images(self, number_B: Tensor) -> Tensor:
        """Return normalised images."""
        return self.pixels_C3HW[number_B].float() / 128 - 1

    def texts(self, number_B: Tensor) -> tuple[Tensor, Tensor]:
        """Return ids and mask, as long as the longest."""
        longest = int(self.length_T[number_B].max())
        return self.ids_TL[number_B, :longest], self.mask_TL[number_B, :longest]


Ranks = dict[str, Tensor]
"""Direction → ranks by features, and behind it those of re-ranking ("t2i/reranked")."""


def blocks(case: Case, data: Data) -> Ranks:
    """As fine-tuning measures it on one rank."""
    model = data.model

    def encoded(numbers: Tensor, encode: Any) -> Tensor:
        return torch.cat([encode(some) for some in torch.split(numbers, BATCH)])

    image_CE = encoded(torch.arange(case.images), lambda of: model.get_image_features(data.images(of)))
    text_TE = encoded(torch.arange(case.texts), lambda of: model.get_text_features(*data.texts(of)))
    forward = nearest(text_TE, image_CE, data.identity_T, data.identity_C, case.top_k)
    backward = nearest(image_CE, text_TE, data.identity_C, data.identity_T, case.top_k)
    texts, images = owned(forward, case.queries), owned(backward, case.queries)

    def score(image_IND: Tensor, batch: PairBatch) -> Tensor:
        ids_UL, mask_UL = data.texts(batch.text_U)
        return match_scores(model, image_IND, batch, model.encode_texts(ids_UL, mask_UL), mask_UL)

    def scores(pairs: PairNumbers) -> Tensor:
        return score_pairs(
            pairs, data.length_T, lambda of: encoded(of, lambda some: model.encode_images(data.images(some))), score,
            batch_size=BATCH, device=torch.device("cpu"),
        )  # fmt: skip

    again = rerank_owned(texts, images, case.images, scores)
    found: Ranks = {"t2i": forward.rank_Q, "i2t": backward.rank_Q}
    return found | {"t2i/reranked": again.text_rank_Q, "i2t/reranked": again.image_rank_Q}


def owned(found: Nearest, queries: int) -> Own:
    """Return the first queries, and what they find."""
    number_Q = torch.arange(min(queries, len(found.rank_Q)))
    return Own(number_Q=number_Q, found=found.select(torch.arange(len(found.rank_Q)) < queries))


def dense(case: Case, data: Data) -> Ranks:
    """Keep everything: all states, all similarities; fuse each query with its candidates, one query at a time."""
    model = data.model
    images = encode_images(model, data.images(torch.arange(case.images)), batch_size=BATCH)
    texts = encode_texts(model, data.ids_TL, data.mask_TL, batch_size=BATCH)
    similarity_TC = texts.feature_NE @ images.feature_NE.T
    right_TC = data.identity_T[:, None] == data.identity_C
    found: Ranks = {}
    for way, score_QC, right_QC in (("t2i", similarity_TC, right_TC), ("i2t", similarity_TC.T, right_TC.T)):
        found[way] = ranks(score_QC, right_QC)
        top_QK = score_QC.topk(min(case.top_k, score_QC.shape[1]), dim=1).indices
        rows = []
        for query, top_K in enumerate(top_QK[: case.queries]):
            one_K = torch.full_like(top_K, query)
            text_K, image_K = (one_K, top_K) if way == "t2i" else (top_K, one_K)
            mask_KL = texts.mask_NL[text_K]
            fused_KLD = model.fuse(texts.state_NLD[text_K], mask_KL, images.state_NLD[image_K])
            score_K = model.match_logits(fused_KLD, mask_KL)[:, 1]
            right_K = right_QC[query, top_K]
            behind = torch.clamp(found[way][query : query + 1], min=len(top_K))
            is_there = bool(right_K.any())
            rows.append(ranks(score_K[None], right_K[None], tolerance=SCORE_TOLERANCE) if is_there else behind)
        found[f"{way}/reranked"] = torch.cat(rows)
    return found


def run_side(side: str, case: Case) -> dict[str, Any]:
    """Measure a side in this process."""
    data = Data(case)
    before, began = time.process_time(), time.monotonic()
    with torch.inference_mode():
        found = (blocks if side == "blocks" else dense)(case, data)
    return {
        "cpu_s": time.process_time() - before,
        "wall_s": time.monotonic() - began,
        "peak_mb": process_memory_bytes()[1] / 2**20,
        "ranks": {name: values.tolist() for name, values in found.items()},
    }


def measure(case: Case) -> dict[str, Any]:
    """Run both sides, each in a process of its own, and compare them."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    sides: dict[str, Any] = {}
    for side in SIDES:
        command = [sys.executable, "-m", "benchmarks.retrieval", "--side", side]
        command += [
            word for name, value in asdict(case).items() for word in (f"--{name.replace('_', '-')}", str(value))
        ]
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
        sides[side] = json.loads(done.stdout)
    ours, theirs = (sides[side].pop("ranks") for side in SIDES)
    pairs = [(a, b) for name in ours for a, b in zip(ours[name], theirs[name], strict=True)]
    return {
        "case": asdict(case),
        "sides": sides,
        "memory_ratio": sides["dense"]["peak_mb"] / sides["blocks"]["peak_mb"],
        "time_ratio": sides["blocks"]["cpu_s"] / sides["dense"]["cpu_s"],
        "equal_ranks": sum(a == b for a, b in pairs) / len(pairs),
    }


def main() -> int:
    """Print the table; exit code 1 if the sides disagree."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("images", 10_000), ("texts", 50_000), ("top-k", 128), ("queries", 1_000)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--side", choices=SIDES, help="only this one, in this process; prints its figures")
    add_json_option(parser)
    options = parser.parse_args()
    queries = options.queries or max(options.images, options.texts)
    case = Case(images=options.images, texts=options.texts, top_k=options.top_k, queries=queries)
    if options.side:
        torch.set_num_threads(1)
        print(json.dumps(run_side(options.side, case)))
        return 0
    found = measure(case)
    print(f"{case.images:,} images, {case.texts:,} texts, {queries:,} queries each way re-ranked among {case.top_k}")
    print(f"{'':10}{'peak memory':>14}{'CPU seconds':>14}")
    for side, figures in found["sides"].items():
        print(f"{side:10}{figures['peak_mb']:11,.0f} MB{figures['cpu_s']:14.1f}")
    ratios = f"memory_ratio {found['memory_ratio']:.2f} (dense over blocks)  time_ratio {found['time_ratio']:.2f}"
    print(f"{ratios} (blocks over dense)  equal ranks {found['equal_ranks']:.4%}")
    write_figures(options.json, found)
    return int(found["equal_ranks"] < LEAST_EQUAL)


if __name__ == "__main__":
    sys.exit(main())
