"""What stand-in data are made of: drawn images of coloured shapes, and words for them in a few languages.

Training, dev and test data are the same things: they are to be learned by heart.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Final

from PIL import Image, ImageDraw

from cclm.files.atomic import make_folder, replace_text
from cclm.shardfile.manifest import Manifest
from cclm.shardfile.writer import ImageTextShardWriter
from cclm.types import ImageTextRecord, View

COLOURS: Mapping[str, tuple[int, int, int]] = {"red": (220, 30, 30), "green": (20, 160, 60), "blue": (40, 60, 220)}
SHAPES = ("circle", "box")
THINGS: Final = tuple(product(COLOURS, SHAPES))
WORDS = ("red", "green", "blue", "circle", "box", "old", "colour", "shape")
_TABLE = """
en: red, green, blue, circle, box, very old, which colour, which shape
de: rot, grün, blau, Kreis, Kasten, sehr alt, welche Farbe, welche Form
es: rojo, verde, azul, círculo, caja, muy viejo, qué color, qué forma
ar: أحمر, أخضر, أزرق, دائرة, صندوق, قديم جدا, أي لون, أي شكل
bn: লাল, সবুজ, নীল, বৃত্ত, বাক্স, খুব পুরোনো, কোন রঙ, কোন আকার
fr: rouge, vert, bleu, cercle, boîte, très vieux, quelle couleur, quelle forme
id: merah, hijau, biru, lingkaran, kotak, sangat tua, warna apa, bentuk apa
ko: 빨강, 초록, 파랑, 원, 상자, 아주 오래된, 무슨 색, 무슨 모양
pt: vermelho, verde, azul, círculo, caixa, muito velho, que cor, que forma
ru: красный, зелёный, синий, круг, коробка, очень старый, какой цвет, какая форма
sw: nyekundu, kijani, bluu, duara, sanduku, kuukuu sana, rangi gani, umbo gani
ta: சிவப்பு, பச்சை, நீலம், வட்டம், பெட்டி, மிகப் பழையது, என்ன நிறம், என்ன வடிவம்
tr: kırmızı, yeşil, mavi, daire, kutu, çok eski, hangi renk, hangi şekil
zh: 红, 绿, 蓝, 圆, 盒子, 很旧, 什么颜色, 什么形状
"""
LANGUAGES: Mapping[str, Mapping[str, str]] = {
    language: dict(zip(WORDS, words.split(", "), strict=True))
    for language, words in (line.split(": ") for line in _TABLE.strip().splitlines())
}
"""By language, what each of `WORDS` is called: in all languages that the recipes test."""
SIDE = 64
"""Pixels."""


def scene(things: Sequence[tuple[str, str]]) -> Image.Image:
    """Draw things (colour, shape) side by side on white."""
    image = Image.new("RGB", (SIDE, SIDE), "white")
    pen = ImageDraw.Draw(image)
    for place, (colour, shape) in enumerate(things):
        x, y, across, down = box_of(place, max(1, len(things)))
        box = (x, y, x + across, y + down)
        (pen.ellipse if shape == "circle" else pen.rectangle)(box, fill=COLOURS[colour])
    return image


def box_of(place: int, count: int) -> tuple[int, int, int, int]:
    """Return where one of so many things of a scene is: x, y, width, height."""
    width = SIDE // count
    return place * width + 4, 8, width - 8, SIDE - 16


def scene_bytes(things: Sequence[tuple[str, str]]) -> bytes:
    """Return the PNG file of a scene."""
    buffer = io.BytesIO()
    scene(things).save(buffer, format="PNG")
    return buffer.getvalue()


def draw_scene(path: Path, things: Sequence[tuple[str, str]]) -> None:
    """Draw a scene into a file."""
    make_folder(path.parent)
    scene(things).save(path)


def draw_things(folder: Path, suffix: str = ".png") -> None:
    """Draw each thing into a folder, in an image of its name."""
    for thing in THINGS:
        draw_scene(folder / f"{'_'.join(thing)}{suffix}", [thing])


def write_image_set(folder: Path, records: Iterable[ImageTextRecord]) -> None:
    """Write an image-text set of one shard."""
    with ImageTextShardWriter(folder, folder.name) as writer:
        for record in records:
            writer.add(record)
    assert writer.info is not None, "it has images"
    Manifest(view=View.IMAGE_TEXT, shards=(writer.info,)).save(folder)


def write_document(path: Path, content: object) -> None:
    """Write an annotation file that is one JSON document."""
    make_folder(path.parent)
    replace_text(path, json.dumps(content, ensure_ascii=False, indent=1) + "\n")


def write_rows(path: Path, rows: Iterable[Mapping[str, object]]) -> None:
    """Write an annotation file of JSON lines."""
    make_folder(path.parent)
    replace_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
