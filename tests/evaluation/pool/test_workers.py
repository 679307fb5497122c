import os
import platform
import subprocess
import sys

import pytest

from quantenv.core import processes
from quantenv.evaluation.pool import workers

SCRIPT = """
import resource, sys
import numpy as np
from quantenv.evaluation.pool.workers import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = []
    for _ in range(40):
        blocks = [np.ones(6 << 20, dtype=np.uint8) for _ in range(4)]
        del blocks
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

if sys.argv[1] == "kept":
    keep_freed_memory()
print(faults())
"""


def _faults(how: str) -> int:
    answer = subprocess.run([sys.executable, "-c", SCRIPT, how], capture_output=True, text=True, check=True)
    return int(answer.stdout)


def test_freed_memory_is_kept_for_the_next_tensors():
    pages = 4 * (6 << 20) // 4096  # what four blocks touch, once
    if platform.libc_ver()[0] == "glibc":
        assert _faults("kept") < 3 * pages
        assert _faults("default") > 10 * pages
    else:
        assert _faults("kept") >= 0  # nothing to set, and nothing breaks


def test_another_c_library_is_left_alone(monkeypatch):
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    monkeypatch.setattr(workers.ctypes, "CDLL", lambda name: 1 / 0)
    workers.keep_freed_memory()


@pytest.mark.parametrize(
    ("before", "within"),
    [
        (None, "glibc.malloc.hugetlb=1"),
        ("glibc.rtld.nns=8", "glibc.rtld.nns=8:glibc.malloc.hugetlb=1"),
        ("glibc.malloc.hugetlb=0", "glibc.malloc.hugetlb=0"),
    ],
)
def test_processes_started_within_are_asked_to_use_huge_pages(monkeypatch, before, within):
    if before is None:
        monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    else:
        monkeypatch.setenv("GLIBC_TUNABLES", before)
    with processes.huge_pages():
        command = [sys.executable, "-c", "import os; print(os.environ['GLIBC_TUNABLES'])"]
        assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == within
    assert os.environ.get("GLIBC_TUNABLES") == before
