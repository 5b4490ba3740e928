"""Written values become typed ones, or problems with key, place and advice; all of them at once."""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, Optional, Union

import pytest

from cclm.errors import ConfigError, Problem
from cclm.files.document import parse_document
from cclm.files.reading import read_typed, to_plain, to_yaml, typed_values
from cclm.files.typed import INVALID, Converter
from cclm.types import Bounds, Language, PathText


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


@dataclass(frozen=True, kw_only=True)
class Base:
    """Shared fields."""

    size: Annotated[int, Bounds(least=1)] = 3
    ratio: float = 0.5


@dataclass(frozen=True, kw_only=True)
class Inner(Base):
    """Inherits."""

    name: str
    path: PathText | None = None
    weights: Mapping[Language, float] | None = None

    def validation_errors(self) -> Iterator[str]:
        """One rule."""
        if self.size > 9:
            yield f"size {self.size} is above 9"


@dataclass(frozen=True, kw_only=True)
class Source:
    """A named thing."""

    path: PathText
    weight: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Outer:
    """One of everything."""

    inner: Inner
    other: Optional[Inner] = None  # noqa: UP045
    word: Literal["joint", "alternate", "off"] = "joint"
    number: Literal[0, 1] = 0
    flag: bool = False
    colour: Colour = Colour.RED
    pair: tuple[float, float] = (0.0, 1.0)
    languages: tuple[Language, ...] = ()
    files: Union[Path, Sequence[Path]] = ()  # noqa: UP007
    sources: Mapping[str, Source] = field(default_factory=dict)
    free: dict[str, Any] | None = None
    either: int | str = 0
    many: list[int] = field(default_factory=list)


def convert(text: str, kind: Any = Outer, **options: Any) -> tuple[Any, dict[str, Problem]]:
    converter = Converter(**options)
    node = parse_document(text, "f.yaml", converter.problems)
    value = converter.convert(node, kind)
    return value, {problem.key: problem for problem in converter.problems}


def read(text: str, kind: Any = Outer, **options: Any) -> Any:
    value, problems = convert(text, kind, **options)
    assert problems == {}
    return value


def test_one_of_everything() -> None:
    found = read(
        "inner: {name: x, size: 5, ratio: 1, weights: {en: 2, 'no': 1e-1}}\nother: null\nword: alternate\nnumber: 1\n"
        "flag: yes\ncolour: blue\npair: [1, 2.5]\nlanguages: [en, 'no']\nfiles: [a, b]\n"
        "sources: {cc3m: {path: x, weight: 3}}\nfree: {a: [1, {b: 1e-6}]}\neither: x\nmany: [1]\n"
    )
    assert found == Outer(
        inner=Inner(name="x", size=5, ratio=1.0, weights={"en": 2.0, "no": 0.1}),
        word="alternate",
        number=1,
        flag=True,
        colour=Colour.BLUE,
        pair=(1.0, 2.5),
        languages=("en", "no"),
        files=(Path("a"), Path("b")),
        sources={"cc3m": Source(path="x", weight=3.0)},
        free={"a": [1, {"b": 1e-6}]},
        either="x",
        many=[1],
    )
    assert type(found.inner.ratio) is float and type(found.pair) is tuple and type(found.files) is tuple
    assert read("inner: {name: x}\nfiles: a\n").files == Path("a")


@pytest.mark.parametrize(
    ("text", "key", "words"),
    [
        ("inner: {name: no}", "inner.name", 'expected a text, got false: write "no"'),
        ("languages: [en, no]", "languages[1]", 'expected a language, got false: write "no"'),
        ("inner: {weights: {no: 2.0}}", "inner.weights.no", 'expected a language, got false: write "no"'),
        ("inner: {weights: {On: 2.0}}", "inner.weights.On", 'expected a language, got true: write "On"'),
        ("inner: {path: yes}", "inner.path", 'expected a path or null, got true: write "yes"'),
        ("inner: {name: ~}", "inner.name", 'got null, which a bare ~ is in YAML: write "~" if it is meant'),
        ("inner: {name: }", "inner.name", "expected a text, got nothing"),
        ("inner: {name: [a]}", "inner.name", "expected a text, got a list"),
        ("inner: {size: 010}", "inner.size", "leave the zero out"),
        ("inner: {size: 12:30}", "inner.size", "expected a whole number of at least 1, got 12:30"),
        ("inner: {size: '5'}", "inner.size", 'got the text "5"; write it without quotes'),
        ("inner: {size: 0}", "inner.size", "expected a whole number of at least 1, got 0"),
        ("inner: {size: 1.5}", "inner.size", "got 1.5"),
        ("inner: {size: true}", "inner.size", "got true"),
        ("inner: {ratio: .inf}", "inner.ratio", "expected a number, got .inf, which is not finite"),
        ("inner: {ratio: 1e999}", "inner.ratio", "not finite"),
        ("inner: {ratio: 2024-01-01}", "inner.ratio", "got 2024-01-01"),
        ("inner: {path: ''}", "inner.path", "expected a path or null, got an empty text"),
        ('inner: {path: "a\\0b"}', "inner.path", "null character"),
        ("inner: x", "inner", "expected a mapping, got x"),
        ("word: jiont", "word", "expected one of joint, alternate, off, got jiont; did you mean joint?"),
        ("word: off", "word", "got false"),
        ("number: 2", "number", "expected one of 0, 1, got 2"),
        ("flag: 1", "flag", "expected true or false, got 1"),
        ("colour: green", "colour", "expected one of red, blue, got green"),
        ("pair: [1]", "pair", "expected a list of 2: a number, a number, got a list of 1"),
        ("pair: [1, x]", "pair[1]", "expected a number, got x"),
        ("languages: en", "languages", "expected a list, each a language, got en"),
        ("files: {a: 1}", "files", "expected a path or a list, each a path, got a mapping"),
        ("sources: {a: {weight: 1}}", "sources.a.path", "missing: expected a path"),
        ("sources: {a: {path: x, wieght: 1}}", "sources.a.wieght", "did you mean sources.a.weight?"),
        ("free: {a: [.nan]}", "free.a", "not finite"),
        ("either: [1]", "either", "expected a whole number or a text, got a list"),
        ("many: [1, x]", "many[1]", "expected a whole number, got x"),
        ("siez: 1", "siez", "did you mean inner.size?"),
        ("zzz: 1", "zzz", "unknown key"),
    ],
)
def test_each_mistake_has_key_line_and_advice(text: str, key: str, words: str) -> None:
    _, problems = convert("# a comment\n" + text + "\n")
    assert words in problems[key], problems
    assert problems[key].startswith(f"f.yaml:2: {key}: ") and problems[key].place == "f.yaml:2"


def test_numbers_are_good_texts_by_their_letters() -> None:
    assert read("inner: {name: 12:30}").inner.name == "12:30"
    assert read("inner: {name: 1.10}").inner.name == "1.10" and read("inner: {name: 0x1F}").inner.name == "0x1F"
    assert read("inner: {name: 2024-01-01}").inner.name == "2024-01-01"
    assert read("inner: {name: x, size: 8.0}").inner.size == 8 and read("inner: {name: x, size: 1e0}").inner.size == 1


def test_all_mistakes_come_at_once_and_rules_of_sound_parts_too() -> None:
    value, problems = convert("inner: {size: 10, name: x}\nflag: 3\nother: {size: 0}\nwrod: joint\n")
    assert value is INVALID
    assert {key: problem.kind for key, problem in problems.items()} == {
        "inner.size": "rule",
        "flag": "wrong_value",
        "other.size": "wrong_value",
        "other.name": "missing_key",
        "wrod": "unknown_key",
    }
    assert problems["inner.size"] == "f.yaml:1: inner.size: 10 is above 9"
    assert read("inner: {size: 10, name: x}", is_resolved=True).inner.size == 10


def test_rules_of_construction_are_told_under_their_field() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Strict:
        low: int = 0
        high: int = 1

        def __post_init__(self) -> None:
            if self.low > self.high:
                raise ConfigError(expected="order", problems=["low: is above high", "and so on"], do="Swap them.")

    _, problems = convert("low: 3\n", Strict)
    assert sorted(problems) == ["", "low"] and problems["low"] == "f.yaml:1: low: is above high"


def test_paths_are_expanded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("SCRATCH", "/scratch/me")
    monkeypatch.delenv("NOWHERE", raising=False)
    text = (
        "inner: {{name: '~/x $SCRATCH', path: {path}}}\nfiles: [$SCRATCH/a]\nsources: {{a: {{path: '${{SCRATCH}}/b'}}}}"
    )
    found = read(text.format(path="~/runs/x"))
    assert found.inner.name == "~/x $SCRATCH", "a text is no path"
    assert (found.inner.path, found.files, found.sources["a"].path) == (
        "/home/me/runs/x",
        (Path("/scratch/me/a"),),
        "/scratch/me/b",
    )
    assert read(text.format(path="a$$b")).inner.path == "a$b"
    assert read(text.format(path="~/x"), is_resolved=True).inner.path == "~/x"
    for path, words in (
        ("$NOWHERE/x", "the variable NOWHERE is not set"),
        ("a$-b", "write $$ for a dollar sign"),
        ("~nobody-of-this-name/x", "no such user"),
    ):
        _, problems = convert(text.format(path=path))
        assert words in problems["inner.path"]


def test_a_url_is_no_path_of_this_machine() -> None:
    text = "inner: {{name: x}}\nfiles: {files}\nsources: {{a: {{path: 's3://bucket/set'}}}}"
    assert read(text.format(files="[a]")).sources["a"].path == "s3://bucket/set", "where URLs are meant"
    _, problems = convert(text.format(files="[s3://bucket/x]"))
    (problem,) = problems.values()
    assert problem.endswith("expected a path, got the URL s3://bucket/x; give a path of this machine")


class View:
    """What views have in common."""


@dataclass(frozen=True, kw_only=True)
class Pairs(View):
    pairs: int = 1


@dataclass(frozen=True, kw_only=True)
class Images(View):
    size: int = 2


@dataclass(frozen=True, kw_only=True)
class Data:
    tokenizer: str = "t"
    views: Mapping[str, View] = field(default_factory=dict)


def test_the_class_of_a_value_may_depend_on_its_key() -> None:
    kinds = {View: {"text_pair": Pairs, "image_text": Images}}
    found = read("tokenizer: x\nviews: {text_pair: {pairs: 3}, image_text: {}}\n", Data, kinds=kinds)
    assert found == Data(tokenizer="x", views={"text_pair": Pairs(pairs=3), "image_text": Images()})
    assert to_plain(found) == {"tokenizer": "x", "views": {"text_pair": {"pairs": 3}, "image_text": {"size": 2}}}
    _, problems = convert("views: {image_txt: {size: 1}, text_pair: {size: 1}}\n", Data, kinds=kinds)
    assert problems["views.image_txt"].endswith("did you mean views.image_text?")
    assert problems["views.text_pair.size"].endswith("did you mean views.image_text.size?")


def test_typed_values_are_written_and_read_back() -> None:
    found = read("inner: {name: '1e5', path: x}\nsources: {a: {path: x}}\nlanguages: ['no', '010']\nfiles: [y]\n")
    text = to_yaml(found)
    assert read(text) == found


def test_a_kind_of_text_with_rules_of_its_own() -> None:
    class Tag(str):
        def __new__(cls, text: str) -> Tag:
            if len(text) != 2:
                raise ValueError("two letters")
            return super().__new__(cls, text)

    assert read("[en]", tuple[Tag, ...]) == ("en",)
    _, problems = convert("[eng, no]", tuple[Tag, ...])
    assert problems["[0]"].endswith("expected a text, got eng (two letters)")
    assert problems["[1]"].endswith('got false: write "no"')


def test_files_and_plain_values(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"en": ["x"],\n "de": "y"}')
    with pytest.raises(ConfigError) as caught:
        read_typed(Mapping[Language, tuple[str, ...]], tmp_path / "a.json", expected="groups", do="Mend it.")
    assert caught.value.problems == ('line 2: de: expected a list, each a text, got the text "y"',)
    assert str(caught.value).endswith("Mend it.")
    assert typed_values(Inner, {"name": "x"}, where="here", expected="a thing", do="") == Inner(name="x")
    with pytest.raises(ConfigError, match=r"here: expected a thing, got name: missing"):
        typed_values(Inner, {}, where="here", expected="a thing", do="")
