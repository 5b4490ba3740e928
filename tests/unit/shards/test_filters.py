"""Each filter on what it must let pass and what it must not; every refusal says what was expected and what came."""

from __future__ import annotations

import gzip
import lzma
import sys
from pathlib import Path
from typing import Any

import pytest

from cclm.errors import ConfigError, MissingDependencyError
from cclm.rows.cells import language_identifier
from cclm.types import TextPair
from shards.corpora.files import accounting
from shards.filters import (
    IMAGE_FILTERS,
    PAIR_FILTERS,
    TEXT_FILTERS,
    non_letters,
    read_benchmarks,
    refusal_of_image,
    refusal_of_pair,
    refusal_of_text,
)
from shards.recipe import FilterSettings
from shards.sketch import SourceImage
from tests.image_files import encoded
from tests.unit.shards.tiny_pictures import drawing


def pair(text_a: str = "a dog on a sofa", text_b: str = "ein Hund auf einem Sofa", score: float | None = None) -> Any:
    return TextPair(text_a=text_a, lang_a="en", text_b=text_b, lang_b="de", source="s", group="g", score=score)


def test_without_settings_everything_passes() -> None:
    assert refusal_of_text("!!! 17", "en", FilterSettings()) is None
    assert refusal_of_pair(pair(text_b="?", score=-9), FilterSettings()) is None
    assert refusal_of_image(SourceImage(b"not even a picture"), FilterSettings()) is None


@pytest.mark.parametrize(
    ("size", "settings", "reason", "got"),
    [
        ((96, 64), FilterSettings(min_side=64), None, None),
        ((96, 63), FilterSettings(min_side=64), "picture_small", "96 x 63 pixels"),
        ((90, 30), FilterSettings(max_aspect=3), None, None),
        ((91, 30), FilterSettings(max_aspect=3), "picture_aspect", "91 x 30 pixels"),
        ((30, 91), FilterSettings(max_aspect=3), "picture_aspect", "30 x 91 pixels"),
    ],
)
def test_pictures_by_size_and_aspect(size: Any, settings: Any, reason: str | None, got: str | None) -> None:
    refusal = refusal_of_image(SourceImage(encoded(drawing(1, size))), settings)
    assert (refusal and refusal.reason, refusal and refusal.got) == (reason, got)


@pytest.mark.parametrize(
    ("text", "settings", "reason", "got"),
    [
        (" dog ", FilterSettings(min_characters=3), None, None),
        (" do ", FilterSettings(min_characters=3), "text_short", "2"),
        ("four", FilterSettings(max_characters=4), None, None),
        ("fives", FilterSettings(max_characters=4), "text_long", "5"),
        ("abc 1", FilterSettings(max_non_letters=0.25), None, None),
        ("ab 12", FilterSettings(max_non_letters=0.25), "text_non_letters", "50%"),
    ],
)
def test_texts_by_length_and_letters(text: str, settings: Any, reason: str | None, got: str | None) -> None:
    refusal = refusal_of_text(text, "en", settings)
    assert (refusal and refusal.reason, refusal and refusal.got) == (reason, got)


def test_vowel_signs_count_as_letters() -> None:
    assert non_letters("हिन्दी กำลัง") == 0  # Devanagari and Thai write vowels as marks
    assert (non_letters("42 %"), non_letters("  "), non_letters("犬")) == (1, 0, 0)


def test_pairs_by_score_and_length_ratio() -> None:
    settings = FilterSettings(min_score=1.05, max_length_ratio=2)
    assert refusal_of_pair(pair(score=1.05), settings) is None
    assert refusal_of_pair(pair(), settings) is None  # a corpus without scores
    assert refusal_of_pair(pair(score=1.04), settings) == ("pair_score", "a margin score of at least 1.05", "1.04")
    refusal = refusal_of_pair(pair(text_a="a dog", text_b="x" * 11), settings)
    assert refusal is not None and (refusal.reason, refusal.got) == ("pair_length_ratio", "11 and 5 characters")


def test_a_pair_goes_with_either_of_its_sentences() -> None:
    for texts in ({"text_a": "a"}, {"text_b": "b"}):
        refusal = refusal_of_pair(pair(**texts), FilterSettings(min_characters=2))
        assert refusal == ("text_short", "at least 2 characters", "1")


BLOCKED = "# not for training\nbad word\nDonnerwetter\n禁止\n\n"


@pytest.mark.parametrize(
    ("text", "got"),
    [
        ("a bad word indeed", "bad word"),
        ("BAD  Word!", "bad word"),
        ("a word, bad", None),
        ("badword", None),
        ("zum Donnerwetter", "donnerwetter"),
        ("Donnerwettern", None),
        ("这里禁止吸烟", "禁止"),
        ("not for training", None),
    ],
)
def test_blocked_words_are_whole_words_or_signs(tmp_path: Path, text: str, got: str | None) -> None:
    path = tmp_path / "blocked.txt"
    path.write_text(BLOCKED, encoding="utf-8")
    refusal = refusal_of_text(text, "en", FilterSettings(blocked_words=str(path)))
    assert (refusal and refusal.got) == got


@pytest.mark.parametrize(
    ("text", "declared", "passes"),
    [
        ("Ein Mann mit einem orangefarbenen Hut, der etwas anstarrt.", "de", True),
        ("Ein Mann mit einem orangefarbenen Hut, der etwas anstarrt.", "en", False),
        ("Ein Mann mit einem orangefarbenen Hut, der etwas anstarrt.", "tlh", True),  # the model knows no Klingon
        ("这是一个在海边的房子，里面住着一个老人和他的狗", "zh-Hant", True),
        ("Dette er et hus som står ved sjøen og skogen", "nb", True),
        ("Hut und Mann", "en", True),  # too short to judge
    ],
)
def test_texts_by_language(text: str, declared: str, passes: bool) -> None:
    pytest.importorskip("py3langid")
    refusal = refusal_of_text(text, declared, FilterSettings(min_language_probability=0.05))
    assert (refusal is None) == passes
    if refusal is not None:
        assert refusal.reason == "text_language" and "for en, rather de: 'Ein Mann" in refusal.got


def test_a_missing_package_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "py3langid.langid", None)  # as if it were not installed
    language_identifier.cache_clear()
    with pytest.raises(MissingDependencyError) as caught:
        refusal_of_text("a text that is long enough", "en", FilterSettings(min_language_probability=0.1))
    assert str(caught.value) == (
        "expected the package py3langid (it identifies languages), got no such package. "
        'pip install "cclm-pretraining[filters]", or leave min_language_probability out.'
    )


def test_sentences_of_a_benchmark(tmp_path: Path) -> None:
    path = tmp_path / "test.en"
    path.write_text("A man in an orange hat starring at something.\n\nहिन्दी\n", encoding="utf-8")
    settings = FilterSettings(benchmark_texts=(str(path),))
    refusal = refusal_of_text("a man, in an ORANGE hat — starring at something", "en", settings)
    assert refusal == (
        "text_of_benchmark", "no test sentence of a benchmark", "'a man, in an ORANGE hat — starring at something'"
    )  # fmt: skip
    for other in ("A man in a hat", "...", "हन्द"):
        assert refusal_of_text(other, "en", settings) is None


def test_pictures_of_a_benchmark(tmp_path: Path) -> None:
    pytest.importorskip("imagehash")
    (tmp_path / "test").mkdir()
    for seed in range(5):
        drawing(seed).save(tmp_path / "test" / f"{seed}.png")
    settings = FilterSettings(benchmark_images=str(tmp_path))
    smaller = encoded(drawing(3).resize((60, 40)), "JPEG", quality=60)
    refusal = refusal_of_image(SourceImage(smaller), settings)
    assert refusal is not None and refusal.reason == "picture_of_benchmark" and refusal.got.startswith("test/3.png (")
    assert refusal_of_image(SourceImage(encoded(drawing(77))), settings) is None


def test_lines_of_a_benchmark_end_at_newlines_only(tmp_path: Path) -> None:
    path = tmp_path / "test.en.gz"
    path.write_bytes(gzip.compress("\ufeffQuiet stones\u2028near the river.\r\nA\x85 b\x0b c\n".encode()))
    settings = FilterSettings(benchmark_texts=(str(path),))
    for text in ("Quiet stones\u2028near the river.", "quiet stones near the river", "a b c"):
        assert refusal_of_text(text, "en", settings) is not None
    assert refusal_of_text("Quiet stones", "en", settings) is None


@pytest.mark.parametrize("data", ["A man".encode("utf-16"), b"A man\xe4\n"])
def test_a_benchmark_in_another_encoding_ends_the_build_before_it_begins(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "test.en").write_bytes(data)
    with pytest.raises(ConfigError, match=r"expected a (text|line) in UTF-8"):
        read_benchmarks(FilterSettings(benchmark_texts=(str(tmp_path / "test.en"),)))


def test_blocked_words_in_any_package(tmp_path: Path) -> None:
    path = tmp_path / "blocked.txt.xz"
    path.write_bytes(lzma.compress("\ufeffbad\u2028word\r\n# c\n".encode()))
    assert refusal_of_text("a bad word", "en", FilterSettings(blocked_words=str(path))) is not None
    assert refusal_of_text("a bad one", "en", FilterSettings(blocked_words=str(path))) is None


def test_what_macos_leaves_among_test_pictures_is_no_picture(tmp_path: Path) -> None:
    pytest.importorskip("imagehash")
    (tmp_path / "__MACOSX").mkdir()
    drawing(3).save(tmp_path / "t.JPG")
    for name in ("._t.jpg", "__MACOSX/._t.jpg", "__MACOSX/u.jpg"):
        (tmp_path / name).write_bytes(b"Mac OS X")
    settings = FilterSettings(benchmark_images=str(tmp_path))
    with accounting() as account:
        read_benchmarks(settings)
    assert account.kinds()["hidden"]["files"] == 3
    assert refusal_of_image(SourceImage(encoded(drawing(77))), settings) is None


def test_a_test_picture_that_does_not_decode_is_one_error_at_the_start(tmp_path: Path) -> None:
    pytest.importorskip("imagehash")
    drawing(3).save(tmp_path / "t.png")
    (tmp_path / "u.png").write_bytes(b"no picture")
    with pytest.raises(ConfigError, match=r"u.png: expected test images that decode, got .*") as caught:
        read_benchmarks(FilterSettings(benchmark_images=str(tmp_path)))
    assert " at 0x" not in str(caught.value)


def test_every_reason_is_its_own() -> None:
    reasons = [*IMAGE_FILTERS, *TEXT_FILTERS, *PAIR_FILTERS]
    assert len(reasons) == len(set(reasons)) == 13
