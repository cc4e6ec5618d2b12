"""A stand-in for CUDA graphs on a CPU: operators are written down once, and done again on the same memory."""

from contextlib import nullcontext

import torch as th
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from agents.device_ppo import DevicePPO

# Reading a number, and making a tensor of one from Python: CUDA refuses both in a recording.
_FORBIDDEN = {"aten::_local_scalar_dense", "aten::lift_fresh", "aten::nonzero", "aten::multinomial"}


class Tape(TorchDispatchMode):
    """Writes down every operator inside, beneath autograd; no Python is left of what called them."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func.name().partition(".")[0] in _FORBIDDEN:
            raise RuntimeError(f"{func.name()} waits for the device")
        result = func(*args, **kwargs)
        if not func.name().startswith("profiler"):
            self.calls.append((func, args, kwargs, tensors(result)))
        return result

    @th.no_grad()
    def replay(self):
        """Do it all again, each result in the memory of the first time."""
        for func, args, kwargs, kept in self.calls:
            for old, new in zip(kept, tensors(func(*args, **kwargs)), strict=True):
                if old.data_ptr() != new.data_ptr():  # neither a view nor changed in place
                    old.copy_(new)


def tensors(tree):
    return [part for part in tree_flatten(tree)[0] if isinstance(part, th.Tensor)]


class Tapes:
    """Records as :class:`agents.graphs.CUDAGraphs`; what the recording itself changes is undone.

    Args:
        changed: The tensors that are.
    """

    def __init__(self, changed=list):
        self._changed = changed

    def beside(self):
        return nullcontext()

    def record(self, function, arguments):
        before = [tensor.detach().clone() for tensor in self._changed()]
        generator = th.get_rng_state()
        with Tape() as tape:
            outputs = function(*arguments)
        with th.no_grad():
            for tensor, was in zip(self._changed(), before, strict=True):
                tensor.copy_(was)
        th.set_rng_state(generator)
        return outputs, tape.replay


class TapedPPO(DevicePPO):
    """:class:`DevicePPO` that records on a CPU."""

    def _recorder(self):
        return Tapes(self._trained)
