"""Process-wide settings that make training faster and change no number: one call, logged.

Never runs on ``import mnv4_rl``: a library does not change its host's allocator uninvited.
"""

from __future__ import annotations

import ctypes
import platform
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from threading import current_thread, main_thread

import torch as th
from torch import nn
from torch.distributions import Distribution

from mnv4_rl.checks import Interval, check_choice, check_positive, check_range
from mnv4_rl.image_extractor import ImageExtractor
from mnv4_rl.policies import PixelModel

THREADS = Interval(1, 1024)  # far past any use; PyTorch tries to start as many as it is told
PRECISIONS: dict[str, th.dtype | None] = {"fp32": None, "bf16": th.bfloat16}

# mallopt's parameter numbers, from glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3
_KEEP_BYTES = 1 << 30
_GROW_BYTES = 64 << 20


@dataclass(frozen=True)
class Tuning:
    """What :func:`tune` did.

    Attributes:
        allocator: Whether glibc now keeps freed memory instead of handing it back after every step.
        threads: Threads PyTorch uses for one operation.
    """

    allocator: bool
    threads: int

    def __str__(self) -> str:
        return ", ".join(f"{name}={value}" for name, value in asdict(self).items())


def tune(threads: int | None = None) -> Tuning:
    """Keep large activations in the process, and set the threads.

    glibc returns every large block to the kernel when it is freed and faults it in again, page by page;
    raising three thresholds saved about a third of the CPU time of a small network. Numerics do not change. Call it
    before the first large tensor; where there is no glibc only the threads are set.

    Args:
        threads: Threads of PyTorch's own pool, None to leave them.

    Returns:
        What was done, for the log.

    Raises:
        ValueError: For fewer threads than one, or absurdly many.
    """
    if threads is not None:
        check_positive(threads=threads)
        check_range("threads", threads, THREADS)
        th.set_num_threads(threads)
    return Tuning(allocator=_keep_freed_memory(), threads=th.get_num_threads())


def set_precision(policy: nn.Module, precision: str) -> None:
    """In which numbers a policy's encoder computes; weights, losses and updates stay fp32.

    ``"bf16"`` (autocast) is faster on GPUs and on processors with bf16 units, and changes what is learned: 8 bits of
    precision where fp32 has 24. Saved agents are fp32.

    Args:
        policy: A policy of :mod:`mnv4_rl.policies`.
        precision: A key of :data:`PRECISIONS`.

    Raises:
        TypeError: For what is no policy, such as the agent.
        ValueError: For another precision, or a policy that cannot change its own.

    Warns:
        RuntimeWarning: For bf16 on a processor that has no units for it.
    """
    check_choice("precision", precision, tuple(PRECISIONS))
    _check_policy(policy)
    models = [module for module in policy.modules() if isinstance(module, PixelModel)]
    if not models and precision != "fp32":
        raise ValueError(
            f"{type(policy).__name__} computes in fp32; for {precision} build it with a policy of mnv4_rl.policies."
        )
    if precision == "bf16" and next(policy.parameters()).device.type == "cpu" and has_bf16_units() is False:
        warnings.warn(
            "This processor has no bf16 units (AVX-512 bf16 or AMX): bf16 is several times slower here than fp32.",
            RuntimeWarning,
            stacklevel=2,
        )
    for model in models:
        model.autocast_dtype = PRECISIONS[precision]


def has_bf16_units() -> bool | None:
    """Whether this processor multiplies bf16 by itself; None where PyTorch cannot tell: before 2.13, or not x86."""
    found: dict[str, object] = getattr(th.cpu, "get_capabilities", dict)()
    if found.get("architecture") != "x86_64":
        return None
    return bool(found["avx512_bf16"] or found["amx_bf16"])


def compile_encoders(policy: nn.Module, *, graphs: bool = True) -> int:
    """Compile a policy's encoders for little overhead a call: on CUDA as CUDA graphs, for the small rollout batches.

    An encoder that cannot be compiled (no compiler, a layer it does not know) stays as it is, with a warning. Weights
    and their names do not change. On a CPU it compiles too, but was no faster in our measurements.

    Args:
        policy: SB3's policy, on its device.
        graphs: Whether the encoder becomes CUDA graphs of its own; not where it is recorded with all around it.

    Returns:
        Encoders compiled.

    Raises:
        TypeError: For what is no policy, such as the agent.
    """
    _check_policy(policy)
    compiled = 0
    for extractor in [module for module in policy.modules() if isinstance(module, ImageExtractor)]:
        network = extractor.network
        device = next(network.parameters()).device
        # CUDA graphs are of fixed shapes: acting and minibatches get one each.
        network.compile(
            mode="reduce-overhead" if graphs else "default", dynamic=False if device.type == "cuda" else None
        )
        try:
            with th.no_grad():
                network(th.zeros((8, *extractor.image_shape), dtype=_read_dtype(extractor), device=device))
            compiled += 1
        except Exception as error:  # the compiler's errors have no common class
            network._compiled_call_impl = None
            warnings.warn(f"{type(extractor).__name__} is not compiled: {error}", RuntimeWarning, stacklevel=2)
    return compiled


def _check_policy(policy: object) -> None:
    if not isinstance(policy, nn.Module):
        raise TypeError(f"The policy is what is changed, got {type(policy).__name__}; of an agent pass model.policy.")


def _read_dtype(extractor: ImageExtractor) -> th.dtype:
    """What its network gets, where the policy hands on bytes."""
    keeps_bytes = extractor.accepts_uint8 and extractor.takes_bytes and isinstance(extractor.normalize, nn.Identity)
    return th.uint8 if keeps_bytes else th.float32


@contextmanager
def unchecked_distributions() -> Iterator[None]:
    """Let PyTorch's distributions take their arguments as they are: each look at them waits for a GPU.

    The setting is the process's; threads beside the main one leave it alone.
    """
    if current_thread() is not main_thread():
        yield
        return
    before = Distribution._validate_args
    Distribution.set_default_validate_args(False)
    try:
        yield
    finally:
        Distribution.set_default_validate_args(before)


def _keep_freed_memory() -> bool:
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    settings = ((_M_MMAP_THRESHOLD, _KEEP_BYTES), (_M_TRIM_THRESHOLD, _KEEP_BYTES), (_M_TOP_PAD, _GROW_BYTES))
    return all([mallopt(parameter, value) for parameter, value in settings])
