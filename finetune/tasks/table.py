"""The table of tasks: the only place that lists them. No torch: a login node lists and checks them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from cclm.evaluate.scores import MEAN_RECALL, RECALLS
from finetune.tasks import retrieval, rows


@dataclass(frozen=True, kw_only=True)
class Task:
    """What is learned and measured; its recipe has its name."""

    title: str
    """In a few words."""
    view: str
    """Of the table of views: what a row is, and which head answers."""
    metrics: tuple[str, ...]
    """Of `cclm.evaluate.scores`; the first one chooses the best epoch."""
    draw: Callable[[Path], None]
    """Writes a little data of this form into a folder: images that can be drawn, texts that are about them."""


def _classify(title: str, draw: Callable[[Path], None]) -> Task:
    return Task(title=title, view="classify", metrics=("accuracy",), draw=draw)


def _answer(title: str, draw: Callable[[Path], None], metric: str = "exact_match") -> Task:
    return Task(title=title, view="answer", metrics=(metric,), draw=draw)


def _retrieve(title: str, draw: Callable[[Path], None], view: str = "retrieve") -> Task:
    title = f"images for texts and texts for images{title}"
    return Task(title=title, view=view, metrics=(MEAN_RECALL, *RECALLS), draw=draw)


TASKS: Mapping[str, Task] = {
    "xvnli": _classify("does an image entail a sentence?", rows.draw_xvnli),
    "marvl": _classify("is a sentence about two images true?", rows.draw_marvl),
    "nlvr2": _classify("is a sentence about two photographs true?", rows.draw_nlvr2),
    "retrieval": _retrieve(", of shard sets", retrieval.draw, "image_text"),
    "xflickrco": _retrieve(": xFlickr&CO", retrieval.draw_xflickrco),
    "wit": _retrieve(": WIT", retrieval.draw_wit),
    "multi30k": _retrieve(": Multi30K", retrieval.draw_multi30k),
    "mscoco": _retrieve(": MSCOCO, COCO-CN, STAIR", retrieval.draw_mscoco),
    "xtd10": _retrieve(": XTD10", retrieval.draw_xtd10),
    "xm3600": _retrieve(": XM3600", retrieval.draw_xm3600),
    "xgqa": _answer("questions about an image", rows.draw_xgqa),
    "cvqa": _answer("multiple choice about an image", rows.draw_cvqa),
    "vqa": _answer("questions about a photograph", rows.draw_vqa, "vqa_score"),
    "refcoco": Task(title="the box that a phrase means", view="locate", metrics=("iou50",), draw=rows.draw_refcoco),
}
"""By name, which is that of the recipe, too; benchmarks of retrieval as `cclm.annotations` and tables call them."""
