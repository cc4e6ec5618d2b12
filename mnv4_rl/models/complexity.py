"""What a network costs: parameters, multiply-adds, output shapes, activation bytes.

Everything is read off the built model while it runs: hooks on its layers, and the hooks by which autograd saves what
backward needs. A layer that these rules do not know is an error, never a silent zero.

Multiply-adds (MACs) of one image, the rule behind the paper's tables:

- convolution: output elements x (input channels / groups) x kernel area
- linear: output elements x input features
- attention: heads x queries x keys x (key width + value width)
- norms, activations, pooling, softmax and element-wise products: not counted
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch as th
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from mnv4_rl.checks import check_positive
from mnv4_rl.models.blocks import Attention
from mnv4_rl.models.layers import LayerScale
from mnv4_rl.models.network import Network
from mnv4_rl.models.specs import Size

# Layers with parameters whose element-wise work is not counted, by the rule above.
_UNCOUNTED = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm, LayerScale)


@dataclass(frozen=True)
class StageCost:
    """What one stage costs for one image.

    Attributes:
        name: The stage's name in the model, such as ``"stem"``, ``"stages.0"`` or ``"head"``.
        output_shape: Shape of its output without the batch axis: (C, H, W) or (features,); () for a container that is
            never called as a whole.
        parameters: Its parameters.
        macs: Its multiply-adds.
        activation_bytes: Bytes of the outputs of its convolutions, linear layers and attentions, in the dtype of the
            model's parameters.
    """

    name: str
    output_shape: tuple[int, ...]
    parameters: int
    macs: int
    activation_bytes: int


@dataclass(frozen=True)
class Complexity:
    """What a network costs for one image; see :func:`measure`.

    Attributes:
        input_shape: Channels, height and width of the image.
        parameters: Parameters of the whole model.
        stages: Its stages in order.
    """

    input_shape: tuple[int, int, int]
    parameters: int
    stages: tuple[StageCost, ...]

    @property
    def macs(self) -> int:
        """Multiply-adds of one forward pass."""
        return sum(stage.macs for stage in self.stages)

    @property
    def activation_bytes(self) -> int:
        """Bytes of all counted outputs; see :class:`StageCost`."""
        return sum(stage.activation_bytes for stage in self.stages)

    @property
    def stage_shapes(self) -> dict[str, tuple[int, ...]]:
        """Output shape of every stage, without the batch axis."""
        return {stage.name: stage.output_shape for stage in self.stages}


def measure(model: nn.Module, image_size: int | Size, in_channels: int | None = None) -> Complexity:
    """Cost of one image, counted while a copy of the model runs on shapes alone: nothing is computed or changed.

    Args:
        model: A :class:`~mnv4_rl.models.network.Network`, or any module from one image batch to one tensor that is made
            of ``Conv2d``, ``Linear``, :class:`~mnv4_rl.models.blocks.Attention` and norms, such as SB3's NatureCNN. Of
            an ``MNV4Extractor`` measure its ``network``: the check of its pixels reads their values.
        image_size: Side, or height and width, in pixels.
        in_channels: Image channels; None asks the model, which only a ``Network`` answers.

    Raises:
        ValueError: For a size below 1, or a model that does not say its channels.
        TypeError: If a parameter belongs to a layer that the rule does not cover, or to one that never ran.
    """
    channels = getattr(model, "in_channels", None) if in_channels is None else in_channels
    if channels is None:
        raise ValueError(f"{type(model).__name__} does not say how many channels it expects; pass in_channels.")
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    check_positive(in_channels=channels, height=height, width=width)
    check_layers(model)
    shapes_only = copy.deepcopy(model).to("meta").eval()
    recorder = _Recorder(shapes_only)
    with th.no_grad():
        shapes_only(th.empty(1, channels, height, width, device="meta", dtype=_dtype(model)))
    parameters = sum(p.numel() for p in model.parameters())
    return Complexity((channels, height, width), parameters, recorder.stage_costs())


def check_layers(model: nn.Module) -> None:
    """Refuse layers whose multiply-adds nobody counts.

    Raises:
        TypeError: Naming the first module that owns parameters and is not covered by the rule.
    """
    for name, layer in model.named_modules():
        owns = any(True for _ in layer.parameters(recurse=False))
        if owns and not _is_counted(layer) and not isinstance(layer, _UNCOUNTED):
            raise TypeError(
                f"No rule counts the multiply-adds of {name or 'the model itself'!r}, a {type(layer).__name__} with "
                "parameters of its own; known are Conv2d, Linear, Attention, LayerScale and the norms. "
                "Add its rule to mnv4_rl/models/complexity.py."
            )


def layer_macs(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> int:
    """Multiply-adds of one call of a layer, by the rule in the module's docstring.

    Args:
        layer: A Conv2d, Linear or Attention; anything else costs 0.
        inputs: What it was called with, of any shape it takes.
        output: What it returned.
    """
    if isinstance(layer, nn.Conv2d):
        return output.numel() * layer.in_channels // layer.groups * math.prod(layer.kernel_size)
    if isinstance(layer, nn.Linear):
        return output.numel() * layer.in_features
    if isinstance(layer, Attention):
        query, key, value = inputs  # (N, heads, L, D), (N, heads, M, D), (N, heads, M, V)
        return query.shape[:3].numel() * key.shape[2] * (key.shape[3] + value.shape[3])
    return 0


def saved_bytes(model: nn.Module, batch: Tensor) -> int:
    """Bytes that autograd keeps from the forward pass of ``batch`` until backward, each memory block counted once.

    Parameters and buffers, which live anyway, are not counted; the batch is, where a layer saves it. The model runs in
    the mode it is in (dropout saves its masks in train mode only); its running statistics are not touched.

    Args:
        model: Any module from one tensor to one tensor.
        batch: Its input, for images (N, C, H, W).
    """
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    resident = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *buffers.values())}
    saved: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in resident:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with th.enable_grad(), saved_tensors_hooks(pack, lambda tensor: tensor):
        output = th.func.functional_call(model, buffers, (batch,))
    total = sum(saved.values())
    del output  # it held every saved block until here, so no address was used twice
    return total


def saved_per_image(model: nn.Module, batch: Tensor) -> int:
    """Bytes kept for backward that every further image adds, without what is kept once a batch (a scaled weight).

    Args:
        model: Any module from one tensor to one tensor.
        batch: Its input, of at least two images (N, C, H, W).
    """
    one = batch[:1].clone()  # a view would hold the memory of the whole batch
    return (saved_bytes(model, batch) - saved_bytes(model, one)) // (len(batch) - 1)


class _Recorder:
    """Counts every call of every layer of a model by hooks, stage by stage."""

    def __init__(self, model: nn.Module) -> None:
        self.stages = dict(_named_stages(model))
        self.parameters = {name: sum(p.numel() for p in stage.parameters()) for name, stage in self.stages.items()}
        self.macs = dict.fromkeys(self.stages, 0)
        self.activation_bytes = dict.fromkeys(self.stages, 0)
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.idle = {name for name, layer in model.named_modules() if _is_counted(layer)}
        for name, layer in model.named_modules():
            if name in self.idle:
                layer.register_forward_hook(self._count(name))
        for name, stage in self.stages.items():
            stage.register_forward_hook(self._shape(name))

    def stage_costs(self) -> tuple[StageCost, ...]:
        """The counts of every stage.

        Raises:
            TypeError: If a counted layer never ran: its work was done behind the hooks' back.
        """
        if self.idle:
            raise TypeError(
                f"The forward pass never called {', '.join(sorted(self.idle))}: a layer whose weights are used without "
                "calling it cannot be counted; call it, or remove it if it is unused."
            )
        return tuple(
            StageCost(name, self.shapes.get(name, ()), parameters, self.macs[name], self.activation_bytes[name])
            for name, parameters in self.parameters.items()
        )

    def _count(self, name: str) -> Callable[..., None]:
        owner = next(stage for stage in self.stages if name == stage or name.startswith(f"{stage}."))

        def hook(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            self.idle.discard(name)
            self.macs[owner] += layer_macs(layer, inputs, output)
            self.activation_bytes[owner] += output.numel() * output.element_size()

        return hook

    def _shape(self, name: str) -> Callable[..., None]:
        def hook(stage: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            self.shapes[name] = tuple(output.shape[1:])

        return hook


def _named_stages(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Stem, each stage and head of a network; the direct children of any other module, or a lone layer itself."""
    if not any(True for _ in model.children()):
        yield "", model
    for name, child in model.named_children():
        if isinstance(model, Network) and child is model.stages:
            yield from ((f"{name}.{index}", stage) for index, stage in child.named_children())
        else:
            yield name, child


def _is_counted(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Conv2d | nn.Linear | Attention)


def _dtype(model: nn.Module) -> th.dtype:
    return next((p.dtype for p in model.parameters()), th.float32)
