"""Import parts of the library once more with every shape annotation checked at run time."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType

from jaxtyping import install_import_hook

PACKAGES = ("cclm.model", "cclm.objectives", "cclm.ops")
REGISTERING = ("cclm.ops.contrastive_operator", "cclm.ops.linear_cross_entropy_operator")
"""They register operators of torch, once a process."""


@contextmanager
def typed_modules(names: Sequence[str]) -> Iterator[list[ModuleType]]:
    """The named modules, imported under jaxtyping and beartype; the plain ones are back in their place afterwards."""
    root = importlib.import_module("cclm")
    attributes = dict(vars(root))
    for name in REGISTERING:
        importlib.import_module(name)
    ours = [name for name in sys.modules if name.startswith(PACKAGES) and name not in REGISTERING]
    plain = {name: sys.modules.pop(name) for name in ours}
    try:
        with install_import_hook(list(PACKAGES), "beartype.beartype"):
            yield [importlib.import_module(name) for name in names]
    finally:
        for name in [name for name in sys.modules if name.startswith(PACKAGES) and name not in REGISTERING]:
            del sys.modules[name]
        sys.modules.update(plain)
        vars(root).update(attributes)
