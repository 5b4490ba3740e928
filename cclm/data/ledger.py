"""What was trained on, verifiably: a hash for each sample, a sum for each step, a chain over the steps.

The sum of a step's sample hashes wraps at 64 bits and does not depend on their order, so the ranks' sums add up to
the same number for any number of ranks. The chain h_k = H(h_{k−1}, k, sums of step k) makes one value speak for the
whole run: two runs whose last lines agree saw the same samples at every step.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from cclm.errors import CheckpointError
from cclm.files.lines import StepLines

START = "0" * 32
"""The chain's value before the first step."""


def hash64(*words: str) -> int:
    """A 64-bit hash of some words, as a signed integer (what an int64 tensor can hold)."""
    digest = hashlib.blake2b("\0".join(words).encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def sample_hash(source: str, key: str, choice: str) -> int:
    """Hash of one training sample: its corpus, its key in it, and what was drawn of it (caption, pairs)."""
    return hash64("sample", source, key, choice)


def identity_hash(identity: str) -> int:
    """63-bit hash (not negative) of what a sample shows; equal for samples that are never each other's negatives."""
    return hash64("identity", identity) & ((1 << 63) - 1)


def text_hash(text: str) -> int:
    """64-bit hash by which stored features of a text are found: of its letters as they stand in the shards."""
    return hash64("text", text)


def image_hash(source: str, key: str) -> int:
    """The same of an image of a set; `source`: the set's fingerprint, "" where the features don't say."""
    return hash64("image", source, key)


def step_sum(hashes: ArrayLike) -> int:
    """Sum of int64 hashes, wrapping; commutative, so ranks may add theirs in any order (`torch.sum` wraps alike)."""
    values = np.asarray(hashes, dtype=np.int64).astype(np.uint64)
    return int(np.add.reduce(values.reshape(-1)).astype(np.int64))


def chain(previous: str, step: int, sums: Mapping[str, int]) -> str:
    """The chain's value after a step: 128 bits, in hexadecimal."""
    words = [previous, str(step), *(f"{view}={total}" for view, total in sorted(sums.items()))]
    return hashlib.blake2b("\0".join(words).encode(), digest_size=16).hexdigest()


class LedgerFile:
    """`ledger.jsonl`: one line a step, {"step", "sums": {view: int}, "hash"}. Written by one process.

    What an earlier, killed run wrote from `next_step` on is cut off (CheckpointError: a step before it is missing).
    """

    def __init__(self, path: Path | str, next_step: int = 0) -> None:
        self._lines = StepLines(path)
        self.rewind(next_step)

    def rewind(self, next_step: int) -> None:
        """Go on with `next_step`; what stands there from it on is cut off, as at the start."""
        self._lines.truncate(next_step)
        last = self._lines.last()
        found = -1 if last is None else int(last["step"])
        if found != next_step - 1:
            raise CheckpointError(
                expected=f"a ledger that ends with step {next_step - 1}",
                got=f"one that ends with step {found}" if last else "an empty one",
                do="Resume in the run folder that the checkpoint belongs to, or start a new run.",
                where=str(self._lines.path),
            )
        self.hash = START if last is None else str(last["hash"])
        self.next_step = next_step

    def append(self, step: int, sums: Mapping[str, int]) -> str:
        """Write the global sums of a step; returns the chain's new value."""
        assert step == self.next_step, f"ledger expects step {self.next_step}, not {step}"
        self.hash = chain(self.hash, step, sums)
        self._lines.append(step, {"sums": dict(sums), "hash": self.hash})
        self.next_step += 1
        return self.hash

    def sync(self) -> None:
        """Force the file to disk; before a checkpoint of `next_step` is complete, or it could not be resumed."""
        self._lines.sync()


def verify_ledger(path: Path | str) -> str:
    """Recompute the chain of a ledger and return its last value (CheckpointError: a line that does not follow)."""
    value = START
    for number, line in enumerate(StepLines(path).read()):
        value = chain(value, number, line.get("sums", {}))
        if line["step"] != number or line.get("hash") != value:
            raise CheckpointError(
                expected=f"step {number} with hash {value}",
                got=f"step {line['step']} with hash {line.get('hash')}",
                do="The ledger was edited or belongs to several runs; do not trust it.",
                where=f"{path}:{number + 1}",
            )
    return value
