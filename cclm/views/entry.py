"""What the table of views says of one. Nothing here loads the table, which loads the views of other packages: these
import this file, and can be imported themselves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cclm.data.config import ViewConfig

if TYPE_CHECKING:
    from cclm.views.view import View


@dataclass(frozen=True, kw_only=True)
class ViewEntry:
    """A view that a configuration may name."""

    config: type[ViewConfig]
    load: Callable[[], type[View[Any, Any]]]
    title: str
    """For people."""
    unit: str
    """What its speed counts: images, pairs, …"""
    contrastive: str = ""
    """Name of its contrastive loss, if it has one."""
    matching: str = ""
    """Name of its matching loss, if it has one."""
