"""What glibc is asked to do with memory, in processes of their own since it lasts as long as these; and counting it."""

import os
import subprocess
import sys

import pytest

from common.memory import resident_bytes
from common.pages import KERNELS, keep_few_kernels

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

ASK = """
import ctypes, re, sys, threading
from pathlib import Path
from common.pages import keep_pages

libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
kept = {asked}

def in_main_heap(address):
    low, high = re.search(r"(\\w+)-(\\w+) .*\\[heap\\]", Path("/proc/self/maps").read_text()).groups()
    return int(low, 16) <= address < int(high, 16)

found = []
def look():
    small, large = libc.malloc(1000), libc.malloc(20 << 20)
    found.extend([in_main_heap(small), in_main_heap(large)])
    libc.free(large)
    again = libc.malloc(20 << 20)
    found.append(again == large)

thread = threading.Thread(target=look)
thread.start(), thread.join()
print(kept, *found)
"""


def test_what_lies_free_is_given_back():
    code = """
import ctypes
from common.memory import resident_bytes
from common.pages import give_pages_back, keep_pages
kept, libc = keep_pages(), ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
blocks = [libc.malloc(20 << 20) for _ in range(10)]
for block in blocks:
    ctypes.memset(block, 1, 20 << 20)
for block in blocks:
    libc.free(block)
held = resident_bytes()
given = give_pages_back()
print(kept, given, (held - resident_bytes()) >> 20)
"""
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    kept, given, megabytes = process.stdout.split()
    if kept == "False":
        pytest.skip("this C library has no mallopt")
    assert given == "True" and int(megabytes) > 180


def test_memory_is_this_process_s_own():
    """A child of a process that holds much has its own peak, which getrusage would not say."""
    code = "from common.memory import resident_bytes; print(resident_bytes(), resident_bytes(peak=True))"
    ballast = bytearray(300 << 20)
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    now, peak = map(int, process.stdout.split())
    assert 1e6 < now <= peak < len(ballast) / 2 and resident_bytes() > len(ballast)
    assert resident_bytes(pid=2**30) is None


def ask(asked):
    """What such a process says."""
    process = subprocess.run([sys.executable, "-c", ASK.format(asked=asked)], capture_output=True, text=True, check=True)
    return process.stdout.split()


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's")
def test_threads_share_one_heap_where_that_is_asked_for():
    if ask("keep_pages()")[0] == "False":
        pytest.skip("this C library has no mallopt")
    assert ask("None")[1:3] == ["False", "False"]  # heaps of their own, and large blocks mapped
    assert ask("keep_pages(one_heap=True)") == ["True", "True", "True", "True"]
    assert ask("keep_pages()")[:2] == ["True", "False"]


SHAPES = """
import sys
from common.pages import keep_few_kernels
if sys.argv[1] == "few":
    keep_few_kernels()
import torch
from common.memory import resident_bytes

weight = torch.ones(1536, 384, dtype=torch.bfloat16)
with torch.inference_mode():
    for rows in range(300, 500):
        torch.nn.functional.linear(torch.ones(rows, 384, dtype=torch.bfloat16), weight)
        if rows == 330:
            before = resident_bytes()
print(resident_bytes() - before)
"""


def test_kernels_of_shapes_that_went_by_are_not_kept():
    """On a CPU with AVX512-BF16 169 shapes took 117 MB, and the few kept 29; others may compile none."""
    grown = {}
    for kept in ("all", "few"):
        done = subprocess.run([sys.executable, "-c", SHAPES, kept], capture_output=True, text=True, check=True)
        grown[kept] = int(done.stdout)
    assert grown["all"] < 50e6 or grown["few"] < grown["all"] / 2


def test_what_the_environment_says_of_kernels_stands(monkeypatch):
    first, *others = KERNELS
    monkeypatch.setenv(first, "999")
    for name in others:
        monkeypatch.delenv(name, raising=False)
    keep_few_kernels()
    assert os.environ[first] == "999" and all(os.environ[name] == KERNELS[name] for name in others)
