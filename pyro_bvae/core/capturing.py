"""Whether operations are being recorded to be compiled."""

from __future__ import annotations

import torch


def is_capturing() -> bool:
    """Whether this thread's operations are being recorded as a graph.

    Work that is done piece by piece for a processor's cache is in vain then.
    """
    if torch.compiler.is_compiling():
        return True
    by_make_fx = torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.PROXY)
    return by_make_fx is not None
