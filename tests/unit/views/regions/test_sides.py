from __future__ import annotations

import pytest

from cclm.views.captions import names_a_side


@pytest.mark.parametrize(
    ("language", "text"),
    [
        ("en", "A dog, left of the car"),
        ("en-GB", "the RIGHTMOST chair"),
        ("de", "der linke Stuhl"),
        ("fr", "à gauche"),
        ("cs", "pes vlevo"),
        ("ru", "собака справа"),
        ("zh-Hant", "左邊的狗"),
        ("ja", "右の犬"),
        ("ko", "왼쪽에 있는 개"),
        ("th", "สุนัขทางซ้าย"),
        ("ar", "الكلب على اليسار"),
        ("tr", "soldaki köpek"),
    ],
)
def test_a_side_is_seen(language: str, text: str) -> None:
    assert names_a_side({"xx": ["nothing"], language: ["nothing here", text]})


def test_what_is_no_side() -> None:
    assert not names_a_side({"en": ["a bright dog", "a fright"], "es": ["el sol"], "en-US": ["a cleft"]})
    assert not names_a_side({"xx": ["left"]}), "the word of another language"
    assert not names_a_side({"left": ["a dog"], "right": ["a cat"]}), "a language code is no text"
