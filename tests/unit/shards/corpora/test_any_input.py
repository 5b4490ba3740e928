"""Whatever a file holds: only reasons come out, in bounded time, and the same ones each time.

Bytes of sound files are changed, cut, doubled and replaced by what has broken other readers; the same ones in each run
(Hypothesis draws others as other modules are imported, so that what failed among all tests passed alone).
"""

from __future__ import annotations

import json
import random
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from cclm.errors import ConfigError
from shards.corpora.table import CORPORA, corpus_of
from shards.recipe import SetRecipe, load_recipe
from shards.scan import ScanJob, scan
from tests.unit.shards.corpora.every_corpus import EVERY
from tests.unit.shards.tiny_corpora import bytes_below

SECONDS = 120
"""More than any of these few hundred bytes takes on a loaded machine."""

ODD = [
    b"", b"\0", b"\xff", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"\r", b"\n", b"\r\n", "\u2028".encode(), b"\x85", b"\x0b",
    b'"', b"'", b"\\", b"\\ud83d", b"\\u0000", b"\t", b",", b"|", b"#", b"<", b"&x;", b"&#0;", b"<!DOCTYPE a [", b"{",
    b"null", b"true", b"-1", b"0", b"NaN", b"1e999", b"-Infinity", b"9" * 5000, b"1e-400", b"[[1]]", b'{"a": {"b": 1}}',
    b"[" * 100_000, b'{"a":' * 50_000, b"a" * 300_000, b"../../x", b"/dev/zero", b"xx", b"\xff\xfe", b"PK\x03", b"]",
]  # fmt: skip


def changed(data: bytes, draw: random.Random) -> bytes:
    """Return data with one to three changes."""
    for _ in range(draw.randint(1, 3)):
        start = draw.randrange(len(data) + 1)
        stop = min(len(data), start + draw.choice([0, 1, 1, 2, 7, 40]))
        odd, noise = draw.choice(ODD), draw.randbytes(draw.choice([1, 2, 8]))
        piece = draw.choice([odd, odd, noise, data[start : start + 60] * 2, bytes(stop - start)])
        data = data[:start] + piece + data[stop:]
        if draw.random() < 0.1:
            data = data[: draw.randrange(len(data) + 1)]
    return data


def odd_value(draw: random.Random) -> Any:
    return draw.choice([
        None, True, False, 0, -1, 7.5, 10**400, float("nan"), float("inf"), "", " ", "x", "\ud83d", "a\0b", "\ufeff",
        ["a", None], [1, 2], {}, {"a": 1}, {"en": "x"}, {"": "x"}, {"xx": "y"}, {"EN": ["x"], "en": "y"}, "no", [[]],
    ])  # fmt: skip


def with_odd_values(value: Any, draw: random.Random, share: float) -> Any:
    """Return a JSON value in which some parts are other ones."""
    if draw.random() < share:
        return odd_value(draw)
    if isinstance(value, dict):
        return {name: with_odd_values(one, draw, share) for name, one in value.items() if draw.random() > share / 3}
    return [with_odd_values(one, draw, share) for one in value] if isinstance(value, list) else value


def changed_json(data: bytes, draw: random.Random) -> bytes:
    """Return a JSON document, or lines of them, with some values changed; other data as `changed` does."""
    try:
        lines = [json.loads(line) for line in data.splitlines()]
    except ValueError:
        return changed(data, draw)
    return b"\n".join(json.dumps(with_odd_values(line, draw, 0.2)).encode() for line in lines)


@contextmanager
def time_limit() -> Iterator[None]:
    def stop(*_: object) -> None:
        raise AssertionError(f"reads for more than {SECONDS} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def read_all(name: str, options: dict[str, Any], out: Path) -> dict[str, bytes] | str:
    """Do the first step of a build; return what it writes, or the one sentence that it ends with."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    recipe = SetRecipe(view=CORPORA[name][0], corpus=name, options=options)
    try:
        for number, part in enumerate(corpus_of(name, options).parts()):
            scan(ScanJob(chunks=out, seed=b"", recipe=recipe, part=part, number=number, lane=0, lanes=1))
    except ConfigError as error:
        return str(error)
    return bytes_below(out)


def check(kind: str, folder: Path, how: Callable[[bytes, random.Random], bytes], draw: random.Random) -> None:
    name, write = EVERY[kind]
    corpus, out = folder / "corpus", folder / "out"
    shutil.rmtree(corpus, ignore_errors=True)
    corpus.mkdir()
    options = write(corpus)
    path = draw.choice(sorted(path for path in corpus.rglob("*") if path.is_file() and path.name != "complete.json"))
    path.write_bytes(how(path.read_bytes(), draw))
    with time_limit():
        first = read_all(name, options, out)
        is_same = read_all(name, options, out) == first  # apart: pytest's comparison of two shards takes gigabytes
    assert is_same, "the same input, the same bytes"
    if isinstance(first, dict):
        assert not any(b" at 0x" in data for data in first.values())


def quick_or_thorough(function: Callable[..., None]) -> Callable[..., None]:
    """Mark a test of every corpus: a few examples always, many with the slow tests."""
    return pytest.mark.parametrize(
        "examples", [pytest.param(3, id="few"), pytest.param(60, id="many", marks=pytest.mark.slow)]
    )(pytest.mark.parametrize("kind", EVERY)(function))


@pytest.mark.slow
@quick_or_thorough
@pytest.mark.parametrize("how", [changed, changed_json])
def test_a_damaged_file_becomes_reasons(
    kind: str, how: Callable[[bytes, random.Random], bytes], examples: int, tmp_path: Path
) -> None:
    for number in range(examples):
        check(kind, tmp_path, how, random.Random(f"{kind} {number}"))


@pytest.mark.parametrize("kind", EVERY)
def test_a_sound_file_is_read_without_a_refusal(kind: str, tmp_path: Path) -> None:
    """Otherwise the tests above would start from nothing."""
    name, write = EVERY[kind]
    (tmp_path / "corpus").mkdir()
    options = write(tmp_path / "corpus")
    written = read_all(name, options, tmp_path / "out")
    assert isinstance(written, dict)
    refused = [data for data in written.values() if b'"stage":"make"' in data]
    assert len(refused) == (kind == "img2dataset"), "of its three rows, one failed to download"


RECIPE = """
sets:
  news:
    view: text_pair
    corpus: pair_file
    options: {path: [a.tsv, b], lang_a: en, lang_b: "no"}
    num_shards: 16
    max_bad_fraction: 0.01
    filters: {min_characters: 3, benchmark_texts: [x]}
"""


@pytest.mark.parametrize("number", range(60))
def test_a_damaged_recipe_is_a_sentence(tmp_path: Path, number: int) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(changed(RECIPE.encode(), random.Random(number)))
    with time_limit(), suppress(ConfigError):
        load_recipe(path)
