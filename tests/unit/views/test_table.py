"""The table of views: no two share their numbers, and a configuration may name them in any order."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from cclm.data.seeding import Purpose
from cclm.data.source import Source
from cclm.errors import ConfigError
from cclm.views.regions.view import GROUP_PURPOSE
from cclm.views.table import VIEWS, make_views
from tests.fourth_view import TABLE
from tests.tiny_views import Views, open_dataset


def source_classes(views: Views) -> dict[str, type[Source[Any, Any]]]:
    return {name: type(source) for name, source in open_dataset(views).sources.items()}


def test_a_configuration_names_views_in_any_order(three_views: Views) -> None:
    assert list(make_views(three_views)) == list(VIEWS)
    made = make_views(dict(reversed(three_views.items())))
    assert list(made) == list(VIEWS)
    for name, view in made.items():
        assert (view.name, view.config) == (name, three_views[name])
        assert type(view.config) is VIEWS[name].config


def test_an_unknown_view_is_refused(three_views: Views) -> None:
    with pytest.raises(ConfigError) as caught:
        make_views({**three_views, "image_txt": three_views["image_text"]})
    assert str(caught.value).startswith("views: expected views of this program: image_text, regions, text_pair")
    assert "got image_txt" in str(caught.value)


@pytest.mark.parametrize("number", ["stream_bits", "sample_purpose"])
def test_no_two_views_share_a_number(three_views: Views, number: str) -> None:
    numbers = [getattr(source, number) for source in source_classes(three_views).values()]
    assert len(set(numbers)) == len(numbers) == len(VIEWS)


def test_what_is_drawn_about_samples_is_drawn_for_nothing_else(three_views: Views) -> None:
    purposes = [source.sample_purpose for source in source_classes(three_views).values()]
    assert not {*Purpose, GROUP_PURPOSE} & {*purposes}


@pytest.mark.xfail(
    strict=False, reason="the settings of the network import torch; without it once they have a file of their own"
)
def test_settings_load_without_torch() -> None:
    code = "import sys, cclm.views.table; sys.exit(sorted({'torch', 'transformers'} & set(sys.modules)) != [])"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
