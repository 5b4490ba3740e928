"""The table of views: no two share their numbers, and a configuration may name them in any order."""

from __future__ import annotations

import dataclasses
import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cclm.data.config import ViewConfig
from cclm.data.seeding import Purpose
from cclm.errors import ConfigError
from cclm.views.annotated.answer import AnswerSource
from cclm.views.annotated.classify import ClassifySource
from cclm.views.annotated.locate import LocateSource
from cclm.views.annotated.retrieve import RetrieveSource
from cclm.views.regions.view import GROUP_PURPOSE
from cclm.views.table import OWN, VIEWS, installed_views, make_views
from cclm.views.view import View
from tests.end_to_end.train_four_views import TABLE
from tests.fourth_view import AudioTextConfig, AudioTextSource
from tests.tiny_views import Views, only, open_dataset


@pytest.fixture
def four_views(three_views: Views) -> Views:
    """With one that is not the library's."""
    images = three_views["image_text"]
    own = AudioTextConfig(
        sources=images.sources, batch_size=8, negative_group=4, matching_rows=4, max_tokens=images.max_tokens
    )
    return {**three_views, "audio_text": own}


def numbers(views: Views, name: str) -> list[int]:
    sources = [type(source) for source in open_dataset(views, table=TABLE).sources.values()]
    annotated = (AnswerSource, ClassifySource, LocateSource, RetrieveSource)
    return [getattr(source, name) for source in (*sources, *annotated)]


def test_a_configuration_names_views_in_any_order(three_views: Views) -> None:
    order = [name for name in VIEWS if name in three_views]
    assert list(make_views(three_views)) == order
    made = make_views(dict(reversed(three_views.items())))
    assert list(made) == order
    for name, view in made.items():
        assert (view.name, view.config) == (name, three_views[name])
        assert type(view.config) is VIEWS[name].config


def test_an_unknown_view_is_refused(three_views: Views) -> None:
    with pytest.raises(ConfigError) as caught:
        make_views({**three_views, "image_txt": three_views["image_text"]})
    assert str(caught.value).startswith("views: expected views of this program: image_text, regions, text_pair")
    assert "got image_txt" in str(caught.value)


def install(folder: Path, name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the metadata of a package with one view where Python finds it."""
    (folder / "sounds-1.dist-info").mkdir()
    (folder / "sounds-1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: sounds\nVersion: 1\n")
    (folder / "sounds-1.dist-info" / "entry_points.txt").write_text(f"[cclm.views]\n{name} = {value}\n")
    monkeypatch.syspath_prepend(folder)


@pytest.mark.slow
def test_an_installed_package_brings_its_view_to_every_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, "audio_text", "tests.fourth_view:ENTRY", monkeypatch)
    assert installed_views() == {"audio_text": TABLE["audio_text"]}
    command = [sys.executable, "-m", "pretrain", "--help"]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(tmp_path)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--views.audio_text.num_bins" in done.stdout
    code = "import tests.fourth_view; from cclm.views.table import VIEWS; assert 'audio_text' in VIEWS"
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(tmp_path)}, check=False)
    assert done.returncode == 0, "the package's own tests import its view before ours"


@pytest.mark.parametrize(
    ("name", "value", "expected", "got"),
    [
        ("audio_text", "no_such_module:ENTRY", "a ViewEntry", "no_such_module:ENTRY: No module named 'no_such_module'"),
        ("audio_text", "tests.fourth_view:AudioTextView", "a ViewEntry", "tests.fourth_view:AudioTextView"),
        ("text_pair", "tests.fourth_view:ENTRY", "a name of its own", "tests.fourth_view:ENTRY"),
    ],
)
def test_a_package_that_brings_no_view_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str, expected: str, got: str
) -> None:
    install(tmp_path, name, value, monkeypatch)
    with pytest.raises(ConfigError) as caught:
        installed_views()
    error = caught.value
    assert (error.where, error.expected, error.got) == (f"entry point cclm.views:{name} of sounds", expected, got)


@pytest.mark.parametrize("number", ["stream_bits", "sample_purpose"])
def test_no_two_views_share_a_number(four_views: Views, monkeypatch: pytest.MonkeyPatch, number: str) -> None:
    found = numbers(four_views, number)
    assert len({*found}) == len(found) == len(TABLE)
    monkeypatch.setattr(AudioTextSource, number, found[1])
    with pytest.raises(AssertionError, match=f"views need a {number} of their own: image_text, regions, text_pair, au"):
        open_dataset(four_views, table=TABLE)
    assert len(open_dataset({**only(four_views, "image_text", "audio_text")}, table=TABLE).sources) == 2


def test_what_is_drawn_about_samples_is_drawn_for_nothing_else(four_views: Views) -> None:
    assert not {*Purpose, GROUP_PURPOSE} & {*numbers(four_views, "sample_purpose")}


def test_settings_load_without_torch() -> None:
    code = "import sys, cclm.views.table; sys.exit(sorted({'torch', 'transformers'} & set(sys.modules)) != [])"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("name", OWN)
def test_an_entry_loads_its_view(name: str) -> None:
    assert issubclass(OWN[name].load(), View)


@pytest.mark.slow
def test_a_view_is_loaded_without_the_others() -> None:
    code = (
        "import sys; from cclm.views.table import VIEWS; VIEWS['image_text'].load()\n"
        "others = tuple(f'cclm.views.{name}.' for name in ('regions', 'text_pair', 'annotated'))\n"
        "print(*sorted(name for name in sys.modules if name.startswith(others) and not name.endswith('.options')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


@pytest.mark.parametrize("config", [entry.config for entry in OWN.values()])
def test_settings_stand_where_they_are_declared(config: type[ViewConfig]) -> None:
    """In a run's config.yaml, whose hash finished results are known by: no base may annotate what a view adds."""
    found = [field.name for field in dataclasses.fields(config)]
    order = list[str]()
    for base in [base for base in reversed(config.mro()) if dataclasses.is_dataclass(base)]:
        fields = {field.name for field in dataclasses.fields(base)}
        order += [name for name in inspect.get_annotations(base) if name in fields and name not in order]
    assert found == [name for name in order if name in found]
