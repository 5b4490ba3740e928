"""Each operation against a formula or a picture whose result is known; then the drawing."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from cclm.data import image as ops
from cclm.data.image import COLOURS, GREY, OPERATIONS, WARPS, randaugment
from cclm.data.options import RandAugmentConfig

LEVEL = 0.7


def noise(size: int = 32, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8))


def values(image: Image.Image) -> NDArray[np.int64]:
    return np.asarray(image).astype(np.int64)


def bar(column: int, size: int = 64) -> Image.Image:
    """White, with a black column."""
    pixels = np.full((size, size, 3), 255, dtype=np.uint8)
    pixels[:, column] = 0
    return Image.fromarray(pixels)


def middle_of(row: NDArray[np.int64]) -> float:
    """Where a row is dark, among its pixels that are not grey filling."""
    dark = np.where(np.abs(row - GREY[0]) > 1, 255 - row, 0).clip(0)
    return float((dark * np.arange(len(row))).sum() / dark.sum())


def test_the_published_list() -> None:
    names = list(OPERATIONS)
    colours = ["identity", "autocontrast", "equalize", "brightness", "sharpness"]
    assert names == [*colours, "shear_x", "shear_y", "translate_x", "translate_y", "rotate"]
    assert list(COLOURS) == colours


def test_identity() -> None:
    assert OPERATIONS["identity"](noise(), LEVEL, 1).tobytes() == noise().tobytes()


def test_autocontrast_stretches_each_channel() -> None:
    pixels = np.zeros((2, 2, 3), dtype=np.uint8)
    pixels[..., 0] = [[50, 100], [150, 100]]
    pixels[..., 1] = 77  # nothing to stretch
    pixels[..., 2] = [[0, 255], [10, 20]]
    found = values(OPERATIONS["autocontrast"](Image.fromarray(pixels), LEVEL, 1))
    assert found[..., 0].tolist() == [[0, 127], [255, 127]]
    assert (found[..., 1] == 77).all() and found[..., 2].tolist() == [[0, 255], [10, 20]]


def test_equalize_flattens_the_histogram() -> None:
    dark = Image.fromarray((np.asarray(noise(64)) // 4).astype(np.uint8))
    found = values(OPERATIONS["equalize"](dark, LEVEL, 1))
    for channel in range(3):
        counts = np.bincount(values(dark)[..., channel].ravel(), minlength=256)
        step = (counts.sum() - counts[counts.nonzero()[0][-1]]) // 255
        darker = np.cumsum(counts) - counts
        table = np.minimum(255, (step // 2 + darker) // step)  # a pixel's place among all of them
        assert np.array_equal(found[..., channel], table[values(dark)[..., channel]])
    assert found.max() > 240 > 64 > values(dark).max()


def test_brightness_multiplies() -> None:
    expected = np.minimum(255, np.floor(values(noise()) * np.float32(1.36))).astype(int)
    assert np.abs(values(OPERATIONS["brightness"](noise(), LEVEL, 1)) - expected).max() <= 1


def test_sharpness_moves_away_from_the_smoothed_picture() -> None:
    picture = values(noise())[..., 0]
    kernel = np.ones((3, 3))
    kernel[1, 1] = 5
    smooth = sum(kernel[y, x] / 13 * picture[y : y + 30, x : x + 30].astype(float) for y in range(3) for x in range(3))
    expected = np.clip(smooth + 1.36 * (picture[1:-1, 1:-1] - smooth), 0, 255)
    found = values(OPERATIONS["sharpness"](noise(), LEVEL, 1))[..., 0]
    assert np.abs(found[1:-1, 1:-1] - expected).max() <= 2  # Pillow rounds the smoothed picture
    assert np.array_equal(found[0], picture[0])  # the edge is not smoothed


@pytest.mark.parametrize("side", [1, -1])
def test_shears(side: int) -> None:
    for operation, is_row in ((OPERATIONS["shear_x"], True), (OPERATIONS["shear_y"], False)):
        image = bar(32) if is_row else bar(32).transpose(Image.Transpose.TRANSPOSE)
        found = values(operation(image, LEVEL, side))[..., 0]
        found = found if is_row else found.T
        for row in (4, 41):  # not where the bar lies half on two pixels, which would look like filling
            assert middle_of(found[row]) == pytest.approx(32 + side * 0.21 * (row + 0.5), abs=0.05)


@pytest.mark.parametrize("side", [1, -1])
def test_translations_are_seven_pixels(side: int) -> None:
    found = values(OPERATIONS["translate_x"](noise(), LEVEL, side))
    moved = values(noise())
    assert np.array_equal(found[:, 7:], moved[:, :-7]) if side > 0 else np.array_equal(found[:, :-7], moved[:, 7:])
    assert (found[:, :7] if side > 0 else found[:, -7:]).tolist() == [[list(GREY)] * 7] * 32
    down = values(OPERATIONS["translate_y"](noise(), LEVEL, side))
    assert np.array_equal(down[7:], moved[:-7]) if side > 0 else np.array_equal(down[:-7], moved[7:])


def test_rotation_is_21_degrees_about_the_middle() -> None:
    pixels = np.full((64, 64, 3), 255, dtype=np.uint8)
    pixels[30:34, 50:54] = 0  # 20 to the right of the middle
    for side in (1, -1):
        dark = 255 - values(OPERATIONS["rotate"](Image.fromarray(pixels), LEVEL, side))[..., 0]
        dark[dark < 200] = 0  # the filling
        place = np.arange(64) + 0.5 - 32
        x, y = (dark.sum(0) * place).sum() / dark.sum(), (dark.sum(1) * place).sum() / dark.sum()
        assert np.hypot(x, y) == pytest.approx(20, abs=0.3)
        assert abs(np.degrees(np.arctan2(y, x))) == pytest.approx(21, abs=1)
        assert np.sign(y) == side


def test_what_is_moved_in_is_grey() -> None:
    for operation in WARPS.values():
        found = values(operation(Image.new("RGB", (32, 32), (255, 255, 255)), LEVEL, 1))
        assert found.min() == 128, operation


def test_operations_are_drawn_with_replacement_and_half_of_them_happen() -> None:
    done: Counter[str] = Counter()
    names = list(OPERATIONS)

    def recorder(name: str) -> ops.Operation:
        def record(image: Image.Image, level: float, side: int) -> Image.Image:
            assert level == LEVEL and side in (1, -1)
            done[name] += 1
            return image

        return record

    generator, untouched, twice = np.random.default_rng(0), 0, 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ops, "OPERATIONS", {name: recorder(name) for name in names})
        for _ in range(4000):
            before = Counter(done)
            randaugment(noise(4), RandAugmentConfig(), generator.random(6).tolist())
            happened = done - before
            untouched += not happened
            twice += max(happened.values(), default=0) == 2
    assert sum(done.values()) == pytest.approx(4000, rel=0.05)
    assert untouched == pytest.approx(1000, rel=0.1)
    assert twice == pytest.approx(4000 * 0.25 * 0.1, rel=0.35)
    assert all(done[name] == pytest.approx(400, rel=0.2) for name in names)


def test_colours_only_never_move_anything() -> None:
    config = RandAugmentConfig(colour_only=True, probability=1.0)
    generator = np.random.default_rng(1)
    image = bar(5, 16)
    for _ in range(60):
        found = values(randaugment(image, config, generator.random(6).tolist()))[..., 0]
        assert found[:, 5].max() == 0 and found[:, 6:].min() == 255
