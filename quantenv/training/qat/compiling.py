"""torch.compile, with kernels on disk taken over only by the vector instructions that they were written for."""

import platform
from collections.abc import Callable
from typing import Any

import torch

#: Bits of a vector, by what torch calls the vector instructions of x86 processors; 1 writes no vectors.
WIDTHS = {"AVX512": 512, "AVX2": 256, "DEFAULT": 1}


def compiled(function: Callable[..., Any], dynamic: bool | None = None) -> Callable[..., Any]:
    """Compiles a function or module for the vector instructions that torch's own kernels use here.

    Inductor keeps the C++ that it writes for a graph on disk, for every process of the machine or of all that share the
    folder. Up to torch 2.13 nothing that it is kept under says for which vectors it was written. Code for AVX-512 that
    is compiled for AVX2 loads half of each vector, and puts out NaN and what else lies in memory. As an option, the
    width is part of what the code is kept under.

    Args:
        function: What to compile.
        dynamic: As of `torch.compile`.

    Returns:
        The compiled function; it is compiled when first called.
    """
    width = WIDTHS.get(torch.backends.cpu.get_cpu_capability()) if platform.machine() in ("x86_64", "AMD64") else None
    return torch.compile(function, dynamic=dynamic, options=None if width is None else {"cpp.simdlen": width})
