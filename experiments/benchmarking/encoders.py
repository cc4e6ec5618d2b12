"""The benchmark's encoders: who takes part, what one call is, and the caps that keep a giant from holding it up.

Environments and buffers hold uint8 images, so every call starts from a uint8 batch and gives each encoder what its own
policy would: ours take the batch as it is (:mod:`mnv4_rl.policies`); NatureCNN and timm's model get ``float() / 255``,
as from SB3's ``preprocess_obs``, and that is part of their time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import torch as th
from gymnasium import spaces
from torch import Tensor, nn

from agents.encoders import policy_kwargs
from experiments.benchmarking.measuring import Clock, Row, calls_per_second, interleave, ratio
from mnv4_rl.models.complexity import measure, saved_per_image
from mnv4_rl.models.registry import SPECS
from mnv4_rl.models.timm_network import import_timm
from mnv4_rl.policies import takes_uint8

REFERENCE = "nature"
TIMM_MODEL = "mobilenetv4_conv_small"
TIMM_NAME = f"timm {TIMM_MODEL}"
CHANNELS = 4
DTYPES = {"fp32": th.float32, "bf16": th.bfloat16}
# Side of the square matrices whose product is the machine's measured peak: large enough to be bound by arithmetic.
PEAK_SIDES = {"cpu": 1024, "cuda": 8192}
# Backward makes two products of each forward one, with respect to the input and to the weights.
PASSES = {"forward": 1, "forward+backward": 3}


@dataclass(frozen=True)
class Group:
    """Calls that are compared with each other in the same rounds.

    Attributes:
        part: Part of the benchmark.
        task: A key of :data:`PASSES`.
        device: "cpu" or "cuda".
        batch: Images in a call.
        size: Side of an image in pixels.
        models: Encoders by name, the reference among them.
    """

    part: str
    task: str
    device: str
    batch: int
    size: int
    models: tuple[str, ...]


@dataclass(frozen=True)
class Limits:
    """How long and how large: ``min_seconds`` of calls a measurement, caps for one call of any but the reference."""

    dtypes: tuple[str, ...]
    rounds: int
    min_seconds: float
    max_seconds: float
    max_bytes: float
    clock: Clock = time.perf_counter


class Cost(NamedTuple):
    """Parameters, multiply-adds (None if no rule counts them) and saved bytes of one image.

    ``saved_bytes`` are those of a float image, ``saved_bytes_uint8`` those of a uint8 one, None if it takes none.
    """

    parameters: int
    macs: int | None
    saved_bytes: int
    saved_bytes_uint8: int | None = None


def is_small(name: str) -> bool:
    """Whether an encoder is meant for RL or a baseline of it: these train at the large batch."""
    return name != TIMM_NAME and (name not in SPECS or SPECS[name].family == "rl")


def timm_missing() -> str | None:
    """Why timm's model cannot take part, None if it can."""
    try:
        import_timm()
    except ModuleNotFoundError as error:
        return f"{TIMM_NAME} is left out: {error}"
    return None


def build(name: str, size: int) -> nn.Module:
    """An encoder by name, for images (CHANNELS, size, size); float in [0, 1], or uint8 if it takes that."""
    if name == TIMM_NAME:
        return import_timm().create_model(TIMM_MODEL, in_chans=CHANNELS, num_classes=0)
    kwargs = policy_kwargs(name)
    space = spaces.Box(0, 255, (CHANNELS, size, size), np.uint8)
    return kwargs["features_extractor_class"](space, **kwargs["features_extractor_kwargs"])


def cost(model: nn.Module, size: int) -> Cost:
    """What an encoder costs for one image of a size."""
    network = getattr(model, "network", model)
    assert isinstance(network, nn.Module)
    parameters = sum(p.numel() for p in model.parameters())
    try:
        macs = measure(network, size, CHANNELS).macs
    except TypeError:  # a foreign model with layers that our rule does not cover
        macs = None
    batch = random_images(2, size)
    floats = saved_per_image(model.train(), batch.float() / 255)
    return Cost(parameters, macs, floats, saved_per_image(model, batch) if takes_uint8(model) else None)


def random_images(n: int, size: int, device: str = "cpu") -> Tensor:
    """Images (n, CHANNELS, size, size) as a buffer holds them: uint8 in [0, 255]."""
    return th.randint(0, 256, (n, CHANNELS, size, size), dtype=th.uint8, device=device)


def make_call(model: nn.Module, images: Tensor, task: str, dtype: str) -> Callable[[], None]:
    """One forward pass as in a rollout, or forward and backward as in an update; waits for the device.

    Args:
        model: The encoder, on the device of the images.
        images: (N, CHANNELS, size, size) uint8; an encoder that takes floats alone gets them as ``float() / 255``.
        task: A key of :data:`PASSES`.
        dtype: A key of :data:`DTYPES`; anything but fp32 runs under autocast.
    """
    trains = task == "forward+backward"

    def call() -> None:
        model.train(trains)
        with th.set_grad_enabled(trains):
            with th.autocast(images.device.type, DTYPES[dtype], enabled=dtype != "fp32"):
                features = model(images if takes_uint8(model) else images.float() / 255)
            if trains:
                features.float().square().mean().backward()
                model.zero_grad(set_to_none=True)
        if images.is_cuda:
            th.cuda.synchronize(images.device)

    return call


def peak_call(device: str, dtype: str) -> tuple[Callable[[], None], float]:
    """A large matrix product and its multiply-adds."""
    side = PEAK_SIDES[device]
    a, b = (th.rand(side, side, device=device, dtype=DTYPES[dtype]) for _ in range(2))

    def call() -> None:
        a @ b
        if a.is_cuda:
            th.cuda.synchronize()

    return call, float(side) ** 3


def refusal(call: Callable[[], None], needed_bytes: float, limits: Limits) -> str:
    """Why a call is over a cap, "" if it is not; runs it once, which also warms it up."""
    if needed_bytes > limits.max_bytes:
        return f"left out: needs about {needed_bytes / 1e9:.1f} GB, the cap is {limits.max_bytes / 1e9:.1f} GB"
    start = limits.clock()
    call()
    seconds = limits.clock() - start
    if seconds > limits.max_seconds:
        return f"left out: one call took {seconds:.1f} s, the cap is {limits.max_seconds:g} s"
    return ""


def measure_group(group: Group, limits: Limits, advance: Callable[[], object]) -> list[Row]:
    """Time every model of a group in every dtype, in the same rounds.

    Args:
        group: What is compared.
        limits: How long and how large.
        advance: Called once for every model, dtype and round, also for those left out.

    Returns:
        A row a model and dtype.
    """
    calls: dict[tuple[str, str], Callable[[], None]] = {}
    notes: dict[tuple[str, str], str] = {}
    costs: dict[str, Cost] = {}
    images = random_images(group.batch, group.size, group.device)
    for name in group.models:
        model = build(name, group.size)
        costs[name] = cost(model, group.size)
        model.to(group.device)
        for dtype in limits.dtypes:
            call = make_call(model, images, group.task, dtype)
            notes[name, dtype] = admit(call, costs[name], group, limits, name)
            if not notes[name, dtype]:
                calls[name, dtype] = call
    for _ in range(limits.rounds * (len(notes) - len(calls))):
        advance()
    rates, peaks = time_calls(calls, group, limits, advance)
    return [make_row(group, key, costs[key[0]], notes[key], rates, peaks) for key in notes]


def admit(call: Callable[[], None], model_cost: Cost, group: Group, limits: Limits, name: str) -> str:
    """Why a model is left out of a group, "" if it takes part; the reference always does."""
    if name == REFERENCE:
        call()
        return ""
    # Saved activations and their gradients; weights, gradients and a copy in another dtype.
    needed = 2 * model_cost.saved_bytes * group.batch + 12 * model_cost.parameters
    return refusal(call, needed, limits)


Rates = dict[tuple[str, str], np.ndarray]


def time_calls(
    calls: dict[tuple[str, str], Callable[[], None]], group: Group, limits: Limits, advance: Callable[[], object]
) -> tuple[Rates, Rates]:
    """Images a second of every (model, dtype), and multiply-adds a second of the matrix product; (rounds,) each."""
    peaks = {("peak", dtype): peak_call(group.device, dtype) for dtype in limits.dtypes}
    everything = {**{key: call for key, (call, _) in peaks.items()}, **calls}
    measures = {
        key: partial(calls_per_second, call, limits.min_seconds, limits.clock) for key, call in everything.items()
    }
    for call, _ in peaks.values():
        call()  # warm up; the others were when they were admitted
    rates = interleave(measures, limits.rounds, advance)
    images = {key: rates[key] * group.batch for key in calls}
    return images, {key: rates[key] * macs for key, (_, macs) in peaks.items()}


def make_row(group: Group, key: tuple[str, str], model_cost: Cost, note: str, rates: Rates, peaks: Rates) -> Row:
    """The line of one model and dtype."""
    name, dtype = key
    row = partial(
        Row,
        part=group.part,
        model=name,
        task=group.task,
        device=group.device,
        dtype=dtype,
        batch=group.batch,
        size=group.size,
        **model_cost._asdict(),
    )
    if key not in rates:
        return row(note=note)
    compared = ratio(rates[key], rates[REFERENCE, dtype])
    best = np.max([values for (model, _), values in rates.items() if model == REFERENCE], axis=0)  # (rounds,)
    return row(
        rounds=len(rates[key]),
        per_second=float(np.median(rates[key])),
        ratio=compared.median,
        ratio_low=compared.low,
        ratio_high=compared.high,
        best_dtype_ratio=ratio(rates[key], best).median,
        peak_fraction=peak_fraction(model_cost, group.task, rates[key], peaks["peak", dtype]),
    )


def peak_fraction(model_cost: Cost, task: str, rates: np.ndarray, peaks: np.ndarray) -> float | None:
    """Median share of the measured peak that a model's multiply-adds reach; rates and peaks are (rounds,)."""
    if model_cost.macs is None:
        return None
    return float(np.median(rates * model_cost.macs * PASSES[task] / peaks))


def encoder_groups(
    models: Sequence[str], device: str, forward_batches: Sequence[int], rl_batch: int, other_batch: int
) -> list[Group]:
    """Forward at every batch for all; forward and backward at one batch for RL encoders and at another for the rest."""
    small = tuple(name for name in models if is_small(name))
    large = (REFERENCE, *(name for name in models if not is_small(name)))
    rows = [("forward", batch, tuple(models)) for batch in forward_batches]
    rows += [("forward+backward", rl_batch, small), ("forward+backward", other_batch, large)]
    return [
        Group("encoders", task, device, batch, 84, names)
        for task, batch, names in rows
        if names != (REFERENCE,) or len(models) == 1
    ]


def frame_groups(models: Sequence[str], device: str, batch: int, sizes: Sequence[int]) -> list[Group]:
    """Forward and backward of the RL encoders and baselines at several sizes."""
    small = tuple(name for name in models if is_small(name))
    return [Group("frames", "forward+backward", device, batch, size, small) for size in sizes]
