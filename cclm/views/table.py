"""The table of views: the only place that lists them.

The order is the order in which a step encodes them; the updates of an alternating step go from the last to the first.
Other packages add views by an entry point, which every program of ours then knows:

    [project.entry-points."cclm.views"]
    audio_text = "my_package.audio_text:ENTRY"     # a ViewEntry

Settings load without torch, so that a login node can check a recipe; what trains is loaded when a view is made.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from importlib import metadata
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

from cclm.data.config import Views
from cclm.errors import ConfigError
from cclm.views.annotated.options import AnswerConfig, ClassifyConfig, LocateConfig, RetrieveConfig
from cclm.views.entry import ViewEntry
from cclm.views.image_text.options import ImageTextConfig
from cclm.views.regions.options import RegionConfig
from cclm.views.text_pair.options import TextPairConfig

if TYPE_CHECKING:
    from cclm.views.view import View

Table = Mapping[str, ViewEntry]
ENTRY_POINTS = "cclm.views"
"""Group of the entry points of other packages."""

OWN: dict[str, ViewEntry] = {
    "image_text": ViewEntry(
        config=ImageTextConfig,
        load=partial(resolve_name, "cclm.views.image_text.view:ImageTextView"),
        title="Image–text view",
        unit="images",
        contrastive="itc",
        matching="itm",
    ),
    "regions": ViewEntry(
        config=RegionConfig,
        load=partial(resolve_name, "cclm.views.regions.view:RegionView"),
        title="Regions",
        unit="texts of regions",
        contrastive="itc",
        matching="itm",
    ),
    "text_pair": ViewEntry(
        config=TextPairConfig,
        load=partial(resolve_name, "cclm.views.text_pair.view:TextPairView"),
        title="Text–text view",
        unit="pairs",
        contrastive="ttc",
        matching="ttm",
    ),
    "classify": ViewEntry(
        config=ClassifyConfig,
        load=partial(resolve_name, "cclm.views.annotated.classify:ClassifyView"),
        title="Classes of images with texts",
        unit="rows",
    ),
    "answer": ViewEntry(
        config=AnswerConfig,
        load=partial(resolve_name, "cclm.views.annotated.answer:AnswerView"),
        title="Questions about images",
        unit="questions",
    ),
    "locate": ViewEntry(
        config=LocateConfig,
        load=partial(resolve_name, "cclm.views.annotated.locate:LocateView"),
        title="Phrases about parts of images",
        unit="phrases",
    ),
    "retrieve": ViewEntry(
        config=RetrieveConfig,
        load=partial(resolve_name, "cclm.views.annotated.retrieve:RetrieveView"),
        title="Images with captions of annotation files",
        unit="captions",
        contrastive="itc",
        matching="itm",
    ),
}


def installed_views(taken: Table = OWN) -> dict[str, ViewEntry]:
    """Return the views of other installed packages, whose names may be none of those `taken`.

    Raises:
        ConfigError: an entry point that cannot be loaded, is no `ViewEntry`, or has a name that is taken.
    """
    found: dict[str, ViewEntry] = {}
    for point in metadata.entry_points(group=ENTRY_POINTS):
        expected = "a ViewEntry" if point.name not in {**taken, **found} else "a name of its own"
        try:
            entry = point.load()
        except (ImportError, AttributeError) as error:
            entry = error
        if not isinstance(entry, ViewEntry) or expected != "a ViewEntry":
            package = point.dist.name if point.dist else "a package"
            raise ConfigError(
                where=f"entry point {ENTRY_POINTS}:{point.name} of {package}",
                expected=expected,
                got=f"{point.value}: {entry}" if isinstance(entry, Exception) else point.value,
                do="Repair or uninstall that package.",
            )
        found[point.name] = entry
    return found


VIEWS: dict[str, ViewEntry] = {**OWN, **installed_views()}


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
            do="Correct the name, or install the package that has the view (docs/extending.md).",
        )
    return {name: entry.load()(name, configs[name]) for name, entry in table.items() if name in configs}
