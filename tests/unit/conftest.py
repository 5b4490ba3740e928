from __future__ import annotations

from tests.unit.hub.small_model import opened, tokenizer_folder

__all__ = ["opened", "tokenizer_folder"]
