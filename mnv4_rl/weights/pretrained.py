"""Trained weights in an encoder whose agent is saved, moved and loaded where the file is not."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import torch as th
from torch import nn

from mnv4_rl.models.layers import has_values
from mnv4_rl.models.network import Network
from mnv4_rl.weights import load_pretrained
from mnv4_rl.weights.files import Pretrained

IN_THE_AGENT = "(weights of a saved agent)"


class PretrainedWeights(nn.Module):
    """Gives a network trained weights once, and remembers in the state dict that it has them.

    SB3 loads an agent by building its policy again, with the same arguments, and copying the saved weights into it.
    The file those arguments name may be gone by then, and need not be there: the weights are in the agent. At that
    moment nothing tells a loaded agent from a new one with a mistyped path, so a file that cannot be had is a warning
    at first; :meth:`check` then raises, unless a state dict has brought the weights in between.

    Attributes:
        arrived: Whether the network has trained weights; a bool tensor, part of the state dict.

    Args:
        network: The network to start.
        pretrained: As in :func:`mnv4_rl.weights.load_pretrained`; :data:`IN_THE_AGENT` where nothing is to be looked
            for, because a saved agent brings the weights.

    Raises:
        ValueError: If the file is there and does not fit.
    """

    if TYPE_CHECKING:  # TorchScript would read it
        arrived: th.Tensor

    def __init__(self, network: Network, pretrained: Pretrained) -> None:
        super().__init__()
        self._reason = "no saved agent has brought them." if pretrained == IN_THE_AGENT else ""
        self._checked = False
        try:
            if not self._reason:
                load_pretrained(network, pretrained)
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


def freeze_trunk(network: Network) -> None:
    """No gradients for stem and stages, so optimisers keep no state for them either. The head stays trainable."""
    network.stem.requires_grad_(False)
    network.stages.requires_grad_(False)
