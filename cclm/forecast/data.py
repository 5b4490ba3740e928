"""What a run reads, before it runs: samples, epochs and languages of every source, and how long its texts are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from cclm.data.config import rows_of_rank
from cclm.data.loader import StepDataset
from cclm.data.source import SampleSource, Source

LOOKED_AT = 64
"""Rows of a view whose texts are measured."""


@dataclass(frozen=True, kw_only=True)
class SourceForecast:
    """One source of a view, over the whole run."""

    view: str
    source: str
    size: int
    drawn: int
    """Samples that the run reads, all ranks together: exact."""
    languages: Mapping[str, float]
    """Expected samples that show a language: by its share of the source's texts, or by `mix.language_weights`. An image
    with captions in several languages shows several."""

    @property
    def epochs(self) -> float:
        """How often a sample is shown."""
        return self.drawn / self.size


def sources_of(dataset: StepDataset, steps: int) -> Iterator[SourceForecast]:
    """Yield every source of every view for a run of so many steps."""
    for view, source in dataset.sources.items():
        batches = dataset.schedule.index(view, steps)
        if isinstance(source, Source):
            for number, name in enumerate(source.config.ordered_sources):
                yield _of_shards(view, name, source, number, batches)
        elif size := sum(sum(one.samples_per_shard) for one in source.sets):
            drawn = batches * source.config.samples_per_step
            yield SourceForecast(view=view, source="all", size=size, drawn=drawn, languages={})


def _of_shards(view: str, name: str, source: Source[Any, Any], number: int, batches: int) -> SourceForecast:
    stream, totals = source.stream, source.sets[number].manifest.totals
    turns = [(lane, stream.assignment.turns_before(batches, lane)) for lane in range(stream.num_lanes)]
    drawn = sum(int(stream.mixture.drawn(lane, turn)[number]) for lane, turn in turns)
    languages = Counter[str]()
    for share, weights in _stages(source, batches):
        parts = {
            language: count if weights is None else weights.get(language, 0.0)
            for language, count in totals.languages.items()
        }
        whole = sum(parts.values())
        languages.update({language: drawn * share * part / whole for language, part in parts.items() if part})
    return SourceForecast(
        view=view, source=name, size=totals.samples, drawn=drawn, languages=dict(languages.most_common())
    )


def _stages(source: Source[Any, Any], batches: int) -> Iterator[tuple[float, Mapping[str, float] | None]]:
    """Yield the share of the steps, and the weights of languages, of each stage of a view."""
    mix = source.config.mix
    found = [(0, mix.language_weights)] + [
        (stage.start_step, stage.language_weights) for stage in mix.schedule if stage.language_weights is not None
    ]
    ends = [start for start, _ in found[1:]] + [batches]
    for (start, weights), end in zip(found, ends, strict=True):
        if (length := min(end, batches) - start) > 0:
            yield length / batches, weights


def text_fill(source: SampleSource[Any, Any], world_size: int) -> float:
    """Return the mean length of the texts of some first rows, as a share of the longest that the view allows."""
    rows = rows_of_rank(source.config.batch_size, 0, world_size)[:LOOKED_AT]
    masks = [text.mask_BL for text in source.batch(0, rows, []).texts]
    mean = sum(int(mask.sum()) for mask in masks) / sum(mask.shape[0] for mask in masks)
    return mean / int(source.config.longest_text)
