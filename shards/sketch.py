"""An image of a corpus, decoded at most once, and sketches: a few bytes of a record by which duplicates meet.

    record -> signature (compared)  and  codes (equal ones make two records meet)

Two near-duplicates almost surely share a code. Perceptual hashes within d bits always do: of d + 1 pieces, one is the
same.
Of 16 bands of a MinHash, one is equal with 99.98 % at similarity 0.8, and with 64 % at 0.5.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import unicodedata
from collections.abc import Sequence
from functools import cached_property
from typing import Any, Final, NamedTuple

import numpy as np
from PIL import Image

from cclm.data.decoding import decode_image, image_size
from cclm.rows.guard import optional_library
from cclm.types import TextPair
from shards.recipe import DuplicateSettings, ImageSettings

_NAMES: Final = {"jpg": "JPEG", "png": "PNG", "webp": "WEBP"}
MINHASH_SIZE: Final = 64
_BANDS: Final = 16
_GRAM: Final = 4
_SEED: Final = 1


class SourceImage:
    """The bytes of an image file, and what they show: upright, on white, in RGB."""

    def __init__(self, data: bytes, where: str = "") -> None:
        self.data, self._where = data, where

    @cached_property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels (errors: `cclm.data.decoding.image_size`)."""
        return image_size(self.data, self._where)

    @cached_property
    def pixels(self) -> Image.Image:
        """The decoded image (errors: `cclm.data.decoding.decode_image`)."""
        return decode_image(self.data, where=self._where)


def written_anew(image: SourceImage, image_format: str, settings: ImageSettings) -> tuple[bytes, str, float]:
    """Return an image as the recipe wants it stored: the file, its format, and the factor that its sides shrank by.

    What needs no change is returned bit for bit. The same pixels give the same bytes with the same Pillow.
    """
    if not settings.short_side and not settings.format:
        return image.data, image_format, 1.0
    wanted, shorter = settings.format or image_format, min(image.size)
    factor = settings.short_side / shorter if 0 < settings.short_side < shorter else 1.0
    if wanted == image_format and factor == 1.0:
        return image.data, image_format, 1.0
    pixels = image.pixels
    if factor != 1.0:
        width, height = (max(1, round(side * factor)) for side in image.size)
        pixels = pixels.resize((width, height), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    options: dict[str, Any] = {} if wanted == "png" else {"quality": settings.quality}
    pixels.save(out, _NAMES[wanted], **options)
    return out.getvalue(), wanted, factor


class Sketch(NamedTuple):
    """What stands for a record's content."""

    signature: bytes
    codes: Sequence[int]


def _code(*pieces: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(b"\0".join(pieces), digest_size=8).digest(), "big")


def exact_sketch(content: bytes) -> Sketch:
    """Return the hash of an image file, or of anything else."""
    digest = hashlib.blake2b(content, digest_size=16).digest()
    return Sketch(digest, (int.from_bytes(digest[:8], "big"),))


def exact_sketch_of_pair(pair: TextPair) -> Sketch:
    """Return the hash of two sentences and their languages, without case and spacing."""
    text = "\0".join((pair.lang_a, _normal(pair.text_a), pair.lang_b, _normal(pair.text_b)))
    return exact_sketch(text.encode("utf-8", "surrogatepass"))


def _normal(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def perceptual_hash(image: SourceImage) -> bytes:
    """Return the 64-bit perceptual hash (DCT) of an image. DataError: reason image_broken."""
    bits = optional_library("imagehash", "it compares images").phash(image.pixels).hash
    return np.packbits(bits.flatten()).tobytes()


def near_sketch_of_image(image: SourceImage, settings: DuplicateSettings) -> Sketch:
    """Return the perceptual hash, and one code for each of `distance` + 1 pieces of it (reasons: perceptual_hash)."""
    signature = perceptual_hash(image)
    value, pieces = int.from_bytes(signature, "big"), settings.distance + 1
    bounds = [64 * piece // pieces for piece in range(pieces + 1)]
    codes = []
    for piece, (start, stop) in enumerate(itertools.pairwise(bounds)):
        bits = (value >> (64 - stop)) & ((1 << (stop - start)) - 1)
        codes.append(_code(b"p", bytes([piece]), bits.to_bytes(8, "big")))
    return Sketch(signature, codes)


def near_sketch_of_pair(pair: TextPair) -> Sketch:
    """Return the MinHash of a pair's character 4-grams, 64 numbers of 32 bits, and one code a band.

    The languages are part of every 4-gram: a sentence's translations into two languages are no duplicates.
    """
    rensa = optional_library("rensa", "MinHash")
    grams = []
    for side, text in ((f"a{pair.lang_a}", pair.text_a), (f"b{pair.lang_b}", pair.text_b)):
        plain = f" {_normal(text)} "
        place = f"{pair.lang_a}-{pair.lang_b}-{side}:"
        grams += [place + plain[at : at + _GRAM] for at in range(max(1, len(plain) - _GRAM + 1))]
    minhash = rensa.RMinHash(num_perm=MINHASH_SIZE, seed=_SEED)
    minhash.update(grams)
    signature = np.array(minhash.digest(), dtype=">u4").tobytes()
    width = len(signature) // _BANDS
    return Sketch(signature, [_code(b"m", bytes([band]), signature[band * width :][:width]) for band in range(_BANDS)])


def similar(signatures: Any, one: bytes, settings: DuplicateSettings, *, exact: bool) -> Any:
    """Return which of some signatures, an array (number, bytes) of uint8, are duplicates of one.

    Its length tells which sketch it is: 16 bytes exact, 8 a perceptual hash, 256 a MinHash.
    """
    if not exact and len(one) == 8:
        return differing_bits(signatures, one) <= settings.distance
    equal = signatures == np.frombuffer(one, dtype=np.uint8)
    if exact:
        return equal.all(axis=1)
    return equal.reshape(len(signatures), MINHASH_SIZE, 4).all(axis=2).mean(axis=1) >= settings.similarity


def differing_bits(signatures: Any, one: bytes) -> Any:
    """Return in how many bits each of some signatures, an array (number, bytes) of uint8, differs from one."""
    return np.unpackbits(signatures ^ np.frombuffer(one, dtype=np.uint8), axis=1).sum(axis=1)
