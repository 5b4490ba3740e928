"""Freed memory that a process keeps, by the pages that the kernel clears for it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from cclm.ops import heap
from cclm.ops.heap import NO_LISTS, SETTINGS, make_room, treat_freed_memory

PROGRAM = """
import resource, sys
from cclm.ops.heap import return_freed_memory, treat_freed_memory

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()

if sys.argv[1] == "keep":
    assert treat_freed_memory("kept", {})
for number in range(4):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    del_me = bytearray(64 << 20)
    del del_me
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
kept = resident()
return_freed_memory()
print(faults, kept - resident())
"""


@pytest.mark.parametrize("name", SETTINGS)
def test_what_the_environment_says_stays(name: str) -> None:
    assert not treat_freed_memory("kept", {name: "1"})
    assert not treat_freed_memory("returned", {name: "1"})


def test_only_who_asks_gives_back_and_only_before_large_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(heap, "return_freed_memory", lambda: calls.append(1))
    monkeypatch.setattr(heap, "_returns", ["nothing"])
    make_room(1 << 30)
    assert not calls
    assert treat_freed_memory("returned", {})
    make_room(1 << 20)
    assert not calls
    make_room(1 << 30)
    assert calls


PART = """
import ctypes, os, resource
from cclm.ops.heap import make_room, treat_freed_memory, _memory_bytes

MiB = 1 << 20
assert treat_freed_memory("returned", os.environ)
library = ctypes.CDLL(None)
library.malloc.restype = ctypes.c_void_p

def take(number, size):
    pieces = [library.malloc(ctypes.c_size_t(size)) for _ in range(number)]
    for piece in pieces:
        ctypes.memset(ctypes.c_void_p(piece), 1, size)
    return pieces

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

for piece in take(30, 8 * MiB):
    library.free(ctypes.c_void_p(piece))
before, first = _memory_bytes("VmRSS"), faults()
pieces = take(20, 8 * MiB)
again = faults() - first
for piece in pieces:
    library.free(ctypes.c_void_p(piece))
peak = _memory_bytes("VmHWM")
make_room(100 * MiB)
returned = before - _memory_bytes("VmRSS")
take(1, 100 * MiB)
print(again, returned // MiB, (_memory_bytes("VmHWM") - peak) // MiB)
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc only")
def test_without_lists_as_much_is_given_back_as_keeps_the_peak() -> None:
    environment = {**os.environ, "GLIBC_TUNABLES": NO_LISTS}
    told = subprocess.run([sys.executable, "-c", PART], check=True, capture_output=True, text=True, env=environment)
    faults, returned_mib, more_mib = (int(word) for word in told.stdout.split())
    assert faults < 1000  # of 40,000 pages: freed memory was used again
    assert 96 <= returned_mib <= 110  # of 240
    assert more_mib <= 5


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc only")
def test_kept_memory_is_used_again_until_it_is_given_back() -> None:
    found = {}
    for way in ("keep", "as it is"):
        command = [sys.executable, "-c", PROGRAM, way]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        found[way] = [int(word) for word in output.split()]
    pages = (64 << 20) // 4096
    (faults, returned), (faults_before, returned_before) = found["keep"], found["as it is"]
    assert faults < pages / 50 < pages / 2 < faults_before
    assert returned > 60 << 20 > returned_before
