"""Trained weights in an encoder whose agent is saved, moved and loaded where the file is not."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import torch as th
from torch import fx, nn

from mnv4_rl.models.layers import has_values
from mnv4_rl.models.network import Network
from mnv4_rl.models.timm_network import TimmNetwork, TimmTrunk, timm_config
from mnv4_rl.weights import load_pretrained
from mnv4_rl.weights.files import Pretrained, find_file, read_weights
from mnv4_rl.weights.loading import most_bytes
from mnv4_rl.weights.statistics import AS_IT_IS, Statistics, from_hub_config
from mnv4_rl.weights.tensors import StateDict, check_tensors, copy_tensors, plain_names, some

IN_THE_AGENT = "(weights of a saved agent)"


class PretrainedWeights(nn.Module):
    """Gives a network trained weights once, and remembers in the state dict that it has them.

    SB3 loads an agent by building its policy again, with the same arguments, and copying the saved weights into it.
    The file those arguments name may be gone by then, and need not be there: the weights are in the agent. At that
    moment nothing tells a loaded agent from a new one with a mistyped path, so a file that cannot be had is a warning
    at first; :meth:`check` then raises, unless a state dict has brought the weights in between.

    Attributes:
        arrived: Whether the network has trained weights; a bool tensor, part of the state dict.
        statistics: Mean and deviation of the images that they were trained on.

    Args:
        network: The network to start.
        pretrained: As in :func:`mnv4_rl.weights.load_pretrained`; :data:`IN_THE_AGENT` where nothing is to be looked
            for, because a saved agent brings the weights.

    Raises:
        ValueError: If the file is there and does not fit.
    """

    if TYPE_CHECKING:  # TorchScript would read it
        arrived: th.Tensor

    def __init__(self, network: Network | TimmNetwork, pretrained: Pretrained) -> None:
        super().__init__()
        self.statistics = AS_IT_IS
        self._reason = "no saved agent has brought them." if pretrained == IN_THE_AGENT else ""
        self._checked = False
        try:
            if not self._reason:
                self.statistics = _start(network, pretrained)
        except (OSError, ImportError) as error:
            self._reason = str(error)
            warnings.warn(
                f"{error} An agent that is being loaded brings its own weights; a new one will refuse to run.",
                stacklevel=2,
            )
        self.register_buffer("arrived", th.tensor(not self._reason))

    def check(self) -> None:
        """Refuse to run on random weights where trained ones were asked for. After the first success it costs nothing.

        It passes where no numbers can be looked at, as while exporting or compiling.

        Raises:
            FileNotFoundError: If neither the file nor a state dict has brought weights.
        """
        if self._checked or not has_values(self.arrived):
            return
        if not bool(self.arrived):
            raise FileNotFoundError(f"The encoder has no weights: {self._reason}")
        self._checked = True


def _start(network: Network | TimmNetwork, pretrained: Pretrained) -> Statistics:
    """Load the weights; mean and deviation of the images that they were trained on."""
    if isinstance(network, TimmNetwork):
        return _start_timm(network, pretrained)
    load_pretrained(network, pretrained)
    return network.image_statistics or AS_IT_IS


def _start_timm(network: TimmNetwork, pretrained: Pretrained) -> Statistics:
    """Timm adapts its own checkpoints: to the image's channels and size, without their classifier."""
    config = timm_config(network.spec.model)
    if pretrained is True and not config.hf_hub_id:
        raise ValueError(f"timm publishes no weights of {network.spec.model}: pass the path of a file as pretrained.")
    path = find_file(config.hf_hub_id if pretrained is True else pretrained)
    own = plain_names(network.trunk.state_dict())
    tensors = read_weights(path, most_bytes(own)).tensors
    misfit = f"{str(path)!r} does not fit timm's {network.spec.model}"
    try:
        given, again = (_timm_state(network, tensors, seed) for seed in (0, 1))
    except Exception as error:  # whatever timm and PyTorch make of other tensors
        raise ValueError(f"{misfit}: {' '.join(str(error).split())[:300]}") from error
    check_tensors(own, given, misfit)
    if random := [key for key, tensor in given.items() if not tensor.equal(again[key])]:  # timm is not always strict
        raise ValueError(f"{misfit}: it has no {some(random)}.")
    copy_tensors(own, given)
    return from_hub_config(path) or (tuple(config.mean), tuple(config.std))


def _timm_state(network: TimmNetwork, tensors: StateDict, seed: int) -> StateDict:
    """The trunk's tensors with a file's; what the file does not have is drawn by the seed."""
    with th.random.fork_rng(devices=[]):
        th.manual_seed(seed)
        return TimmTrunk(network.spec, network.in_channels, network.image_size, tensors).state_dict()


class Normalize(nn.Module):
    """Images as a network's trained weights know them: less a mean, over a deviation.

    Both are part of the state dict, so that a saved agent needs no file to know them.

    Args:
        statistics: Mean and deviation of each channel that the weights were trained on, as a rule R, G and B.
        channels: Image channels. Multiples of those are R, G, B, R, ..., as the stem's weights repeat; others grey,
            which gets the colours' mean.

    Shape:
        (N, channels, H, W), float in [0, 1], or uint8 in [0, 255] -> the same shape, float.
    """

    if TYPE_CHECKING:  # TorchScript would read it
        mean: th.Tensor
        std: th.Tensor

    def __init__(self, statistics: Statistics, channels: int) -> None:
        super().__init__()
        for name, colours in zip(("mean", "std"), statistics, strict=True):
            values = th.tensor(colours)
            frames, rest = divmod(channels, len(colours))
            values = values.mean().repeat(channels) if rest else values.repeat(frames)
            self.register_buffer(name, values[:, None, None])

    def statistics(self) -> Statistics:
        """Mean and deviation, a number for each channel."""
        mean, deviation = (tuple(values.flatten().tolist()) for values in (self.mean, self.std))
        return mean, deviation

    def forward(self, images: th.Tensor) -> th.Tensor:
        """Subtract and divide."""
        return (_as_floats(images, self.mean) - self.mean) / self.std


@fx.wrap  # one call in a graph of torch.fx, which cannot follow what is decided by a dtype
def _as_floats(images: th.Tensor, like: th.Tensor) -> th.Tensor:
    if images.dtype == th.uint8:
        return images.to(like.dtype) / 255
    return images


def freeze_trunk(network: Network | TimmNetwork) -> None:
    """No gradients for all but the head, so optimisers keep no state for the rest either. The head stays trainable."""
    for name, part in network.named_children():
        part.requires_grad_(name == "head")
