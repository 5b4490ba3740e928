"""Names of shape annotations. Without jaxtyping, which an exported folder does not ask for, they say nothing."""

from __future__ import annotations

from typing import Annotated

try:  # transformers does not ask for what is imported in a try
    from jaxtyping import Bool, Float, Int, Shaped
except ImportError:
    Bool = Float = Int = Shaped = Annotated

__all__ = ["Bool", "Float", "Int", "Shaped"]
