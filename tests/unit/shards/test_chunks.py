"""Runs: sorted by place in the set, read by range, seen whole or not at all."""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cclm.types import View
from shards.__main__ import read_share
from shards.chunks import (
    LAST_ORDER,
    ROW_ORDER,
    TEXT_CHUNK_SCHEMA,
    ChunkName,
    ChunkWriter,
    chunk_of,
    gather,
    list_chunks,
    order_of,
    position_of,
)
from shards.progress import Followed
from shards.recipe import SetRecipe
from shards.scan import WHOLE, Share, chunks_of, is_read, scan, scan_jobs
from tests.unit.shards.tiny_corpora import lazy_texts, one_part

places = st.tuples(st.integers(0, 2**20 - 1), st.integers(0, 2**20 - 1), st.integers(0, 2**24 - 1))


@given(places, places)
def test_positions_are_in_the_order_of_the_corpus_and_name_their_run(one: Any, other: Any) -> None:
    assert (position_of(*one) < position_of(*other)) == (one < other)
    assert chunk_of(position_of(*one)) == ChunkName(part=one[0], chunk=one[1])
    assert position_of(*one) < 2**64


def write(folder: Path, rows: Any, chunk: Any = 0) -> None:
    """Write a run of (order, key, position) rows, each with its own order as its code."""
    writer = ChunkWriter(folder, ChunkName(part=0, chunk=chunk), TEXT_CHUNK_SCHEMA)
    for order, key, position in rows:
        row = {"order": order, "key": key, "position": position, "kind": 0}
        writer.add_row(row, {"exact": (order ^ 1,)})
    writer.finish(["exact"], {"records": 1, "units": len(rows), "bad": 0})


row = st.tuples(st.sampled_from([0, 1, 5, 2**63, LAST_ORDER]), st.sampled_from(["a", "b", "ä"]), st.integers(0, 9))


@pytest.mark.slow
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.lists(row, max_size=8, unique=True), min_size=1, max_size=3), st.data())
def test_a_range_of_many_chunks_against_a_sorted_list(
    tmp_path_factory: pytest.TempPathFactory, chunks: Any, data: Any
) -> None:
    folder = tmp_path_factory.mktemp("chunks")
    for chunk, rows in enumerate(chunks):
        write(folder, rows, chunk)
    names = list_chunks(folder)
    assert names == [ChunkName(part=0, chunk=chunk) for chunk in range(len(chunks))]
    first, last = sorted((data.draw(st.integers(0, LAST_ORDER)), data.draw(st.integers(0, LAST_ORDER))))
    columns = ["order", "key", "position"]
    table = gather([name.path(folder) for name in names], first, last, columns, TEXT_CHUNK_SCHEMA).sort_by(ROW_ORDER)
    expected = sorted(row for rows in chunks for row in rows if first <= row[0] <= last)
    assert list(zip(*(table[column].to_pylist() for column in columns), strict=True)) == expected
    for name, rows in zip(names, chunks, strict=True):
        with pa.memory_map(str(name.path(folder))) as file:
            keys = pa.ipc.open_file(file).read_all()["order"].to_pylist()
        with pa.memory_map(str(name.path(folder, "exact"))) as file:
            codes = pa.ipc.open_file(file).read_all()
        assert codes["code"].to_pylist() == sorted(order ^ 1 for order, _, _ in rows)
        assert [keys[place] ^ 1 for place in codes["row"].to_pylist()] == codes["code"].to_pylist()


def test_an_order_does_not_change_between_versions() -> None:
    """Another value would shuffle every set anew."""
    assert order_of("key-0", b"0:images") == int.from_bytes(bytes.fromhex(EXPECTED_ORDER), "big")
    assert order_of("key-0", b"1:images") != order_of("key-0", b"0:images") != order_of("key-1", b"0:images")


EXPECTED_ORDER = "a80efc55269c7399"


@given(st.integers(1, 9), st.integers(1, 7), st.integers(1, 5))
def test_tasks_and_workers_share_every_chunk_exactly_once(parts: Any, tasks: Any, workers: int) -> None:
    recipe = SetRecipe(view=View.TEXT_PAIR, corpus="c")
    listed = [part for number in range(parts) for part in one_part([], name=f"{number}")]
    jobs = [
        job
        for task in range(tasks)
        for job in scan_jobs(listed, "chunks", b"", recipe, Share(number=task, of=tasks), workers)
    ]
    for part in range(parts):
        for chunk in range(60):
            assert len([j for j in jobs if j.number == part and chunk % j.lanes == j.lane]) == 1


def test_what_is_read_is_skipped_and_what_is_left_is_named(tmp_path: Path) -> None:
    recipe = SetRecipe(view=View.TEXT_PAIR, corpus="c", records_per_chunk=5)
    parts = one_part(lazy_texts(12))
    first, second = scan_jobs(parts, tmp_path, b"0:s", recipe, WHOLE, 2)
    assert not is_read(tmp_path, 0) and chunks_of(tmp_path, 0) is None
    assert (scan(first), chunks_of(tmp_path, 0), is_read(tmp_path, 0)) == (2, 3, False)
    seen: list[tuple[int, bool]] = []
    progress: Any = SimpleNamespace(advance=lambda records, *, done_before: seen.append((records, done_before)))
    followed = Followed(tmp_path, progress)
    assert (scan(second), is_read(tmp_path, 0)) == (1, True)
    assert (followed.look()["units"], seen) == (36, [(5, True), (2, True), (5, False)])
    assert (scan(first), scan(second)) == (0, 0)
    assert Followed(tmp_path).facts == {"records": 12, "units": 36, "bad": 0}


@pytest.mark.parametrize("text", ["3/3", "1", "a/b", "-1/2", "1/0", "0/2/3", ""])
def test_what_is_no_share(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="is not I/N with I from 0 to N - 1"):
        read_share(text)
    assert read_share("2/3") == Share(number=2, of=3)


def test_the_parts_that_have_ended_tell_about_the_others(tmp_path: Path) -> None:
    followed = Followed(tmp_path)
    followed.facts["records"], followed.of_parts = 70, Counter({0: 20, 1: 30, 4: 20})
    assert followed.guess_of_all([], 10) is None
    assert followed.guess_of_all([0, 1], 10) == 250
    assert followed.guess_of_all([0], 2) == 70  # never less than what was seen
