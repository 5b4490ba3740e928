from __future__ import annotations

import pytest

from cclm.files.durations import in_words

WORDS = {-1: "0 s", 41.4: "41 s", 119: "119 s", 120: "2 min", 3599: "59 min", 12000: "3 h 20 min", 187200: "2 d 4 h"}


@pytest.mark.parametrize("seconds", WORDS)
def test_in_words(seconds: float) -> None:
    assert in_words(seconds) == WORDS[seconds]
