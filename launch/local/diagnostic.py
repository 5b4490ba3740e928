"""What `python -m launch doctor` says: one line of its report."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One line of the report."""

    level: str
    """"ok", "note" (worth knowing), "warn" (will bite later) or "fail" (nothing will work)."""
    subject: str
    text: str
