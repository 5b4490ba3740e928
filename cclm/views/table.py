"""The table of views: the only place that lists them.

The order is the order in which a step encodes them; the updates of an alternating step go from the last to the first.
A program with a view of its own passes `VIEWS | {"name": ViewEntry(...)}` on (docs/extending.md). Settings load without
torch, so that a login node can check a recipe; what trains is loaded when a view is made.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cclm.data.config import ViewConfig, Views
from cclm.errors import ConfigError
from cclm.views.image_text.options import ImageTextConfig
from cclm.views.regions.options import RegionConfig
from cclm.views.text_pair.options import TextPairConfig

if TYPE_CHECKING:
    from cclm.views.view import View


@dataclass(frozen=True, kw_only=True)
class ViewEntry:
    """A view that a configuration may name."""

    config: type[ViewConfig]
    """Its settings."""
    load: Callable[[], type[View[Any, Any]]]
    """Import and return its class."""
    title: str
    """For people."""
    unit: str
    """What its speed counts: images, pairs, …"""
    contrastive: str
    """Name of its contrastive loss."""
    matching: str
    """Name of its matching loss."""


def _image_text() -> type[View[Any, Any]]:
    from cclm.views.image_text.view import ImageTextView

    return ImageTextView


def _regions() -> type[View[Any, Any]]:
    from cclm.views.regions.view import RegionView

    return RegionView


def _text_pair() -> type[View[Any, Any]]:
    from cclm.views.text_pair.view import TextPairView

    return TextPairView


Table = Mapping[str, ViewEntry]

VIEWS: dict[str, ViewEntry] = {
    "image_text": ViewEntry(
        config=ImageTextConfig,
        load=_image_text,
        title="Image–text view",
        unit="images",
        contrastive="itc",
        matching="itm",
    ),
    "regions": ViewEntry(
        config=RegionConfig,
        load=_regions,
        title="Regions",
        unit="texts of regions",
        contrastive="itc",
        matching="itm",
    ),
    "text_pair": ViewEntry(
        config=TextPairConfig,
        load=_text_pair,
        title="Text–text view",
        unit="pairs",
        contrastive="ttc",
        matching="ttm",
    ),
}


def make_views(configs: Views, table: Table = VIEWS) -> dict[str, View[Any, Any]]:
    """Make the views of a configuration, in the order of the table, wherever the configuration names them.

    Raises:
        ConfigError: a view that the table does not have.
    """
    unknown = [name for name in configs if name not in table]
    if unknown:
        raise ConfigError(
            where="views",
            expected=f"views of this program: {', '.join(table)}",
            got=", ".join(unknown),
            do="Correct the name, or give the program a table that has the view (docs/extending.md).",
        )
    return {name: entry.load()(name, configs[name]) for name, entry in table.items() if name in configs}
