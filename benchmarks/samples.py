"""Made-up pictures and sentences that cost about as much to read as real ones."""

from __future__ import annotations

import io
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers

from cclm.data.tokens import TextTokenizer
from cclm.types import TextPair

WIDTH, HEIGHT, QUALITY = 500, 375, 90


def photograph(number: int) -> bytes:
    """A JPEG of 500 × 375 pixels: noise with a photograph's spectrum and some rectangles, about 70 kB."""
    generator = np.random.default_rng(number)
    spectrum = np.fft.rfft2(generator.normal(size=(3, HEIGHT, WIDTH)), axes=(1, 2)) * _falling_off()
    waves = np.fft.irfft2(spectrum, s=(HEIGHT, WIDTH), axes=(1, 2))
    pixels = ((waves / waves.std()) * 35 + 128).clip(0, 255).astype(np.uint8).transpose(1, 2, 0).copy()
    for _ in range(12):
        top, left = int(generator.integers(HEIGHT - 40)), int(generator.integers(WIDTH - 40))
        height, width = int(generator.integers(10, 150)), int(generator.integers(10, 200))
        pixels[top : top + height, left : left + width] = generator.integers(0, 256, 3)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=QUALITY)
    return stream.getvalue()


@lru_cache(maxsize=1)
def _falling_off() -> NDArray[np.float64]:
    """Amplitude 1/f."""
    frequency = np.hypot(np.fft.fftfreq(HEIGHT)[:, None], np.fft.rfftfreq(WIDTH)[None])
    frequency[0, 0] = np.inf
    factors: NDArray[np.float64] = 1 / frequency
    return factors


def sentence_pairs(count: int) -> list[TextPair]:
    """Pairs of about twelve words with the frequencies of words (Zipf), each a group of its own."""
    generator = np.random.default_rng(0)
    letters = np.array(list("etaoinshrdlucmfwypvbgkqjxz"))
    words = ["".join(generator.choice(letters[:20], int(generator.integers(2, 10)))) for _ in range(20_000)]
    rank = generator.zipf(1.3, size=(2 * count, 16)) % len(words)
    lengths = generator.integers(6, 17, size=2 * count)
    texts = [" ".join(words[index] for index in row[:length]) for row, length in zip(rank, lengths, strict=True)]
    return [
        TextPair(
            text_a=texts[2 * number],
            lang_a="en",
            text_b=texts[2 * number + 1],
            lang_b="de",
            source="made-up",
            group=f"g{number}",
            score=1.05 + number % 100 / 1000,
        )
        for number in range(count)
    ]


def character_tokenizer() -> TextTokenizer:
    """One token a letter: longer texts than a trained tokenizer makes."""
    tokens = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *map(chr, range(97, 123))]
    tokenizer = Tokenizer(models.BPE({token: index for index, token in enumerate(tokens)}, [], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return TextTokenizer(tokenizer)
