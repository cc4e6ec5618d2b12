"""Where an encoder looks: how much its features change when a patch of the picture is blurred.

After Greydanus et al. 2018, "Visualizing and Understanding Atari Agents" (arXiv:1711.00138), section 3.1. At each point
of a grid the observation I is blended with a blurred copy, by a Gaussian mask around that point, which takes away what
is there without adding an edge. The saliency of the point is half the squared distance between the encoder's features
of I and of the blend. They compare the policy's logits; features are compared here, so that the picture shows the
encoder and means the same for PPO, DQN and QR-DQN.
"""

from __future__ import annotations

import numpy as np
import torch as th
from PIL import Image
from stable_baselines3.common.base_class import BaseAlgorithm
from torch import Tensor
from torch.nn import functional as F

from agents.encoders import encoder_of

GRID_STEP = 7  # observation pixels between neighbouring points: 12 x 12 points on 84 x 84
MASK_SIGMA = 5.0  # observation pixels; the paper's
BLUR_SIGMA = 3.0  # observation pixels; the paper's
STRENGTH = 0.7  # share of red where saliency is highest


@th.no_grad()
def saliency(model: BaseAlgorithm, observation: np.ndarray) -> np.ndarray:
    """Saliency of each point of a grid over one observation.

    Args:
        model: Any SB3 algorithm on images, channels first.
        observation: (channels, height, width) uint8.

    Returns:
        (height // 7, width // 7) float32, at least 0; row i is centred on the observation's row 7i + 3. The blur
        covers all stacked frames at once.
    """
    policy, encoder = model.policy, encoder_of(model)
    policy.set_training_mode(False)
    picture = policy.obs_to_tensor(observation[None])[0].float()  # type: ignore[union-attr]  # (1, C, H, W) in 0..255
    height, width = observation.shape[1:]
    rows, columns = height // GRID_STEP, width // GRID_STEP
    masks = _masks(height, width, rows, columns).to(picture)  # (rows * columns, 1, H, W) in 0..1
    blended = picture + masks * (_blur(picture) - picture)  # (rows * columns, C, H, W)
    features = policy.extract_features(th.cat([picture, blended]), encoder)  # type: ignore[arg-type]
    change = (features[1:] - features[:1]).square().sum(1) / 2
    return change.reshape(rows, columns).cpu().numpy()


def _masks(height: int, width: int, rows: int, columns: int) -> Tensor:
    """A Gaussian with peak 1 around each point of the grid: (rows * columns, 1, height, width)."""
    down = _bumps(height, rows)  # (rows, height)
    across = _bumps(width, columns)  # (columns, width)
    return th.einsum("ih,jw->ijhw", down, across).reshape(-1, 1, height, width)


def _bumps(length: int, n_points: int) -> Tensor:
    centres = th.arange(n_points) * GRID_STEP + GRID_STEP // 2
    return th.exp(-((th.arange(length) - centres[:, None]) ** 2) / (2 * MASK_SIGMA**2))


def _blur(picture: Tensor) -> Tensor:
    """(1, C, H, W), every channel blurred by itself; the border is repeated outwards."""
    radius = round(3 * BLUR_SIGMA)
    bump = th.exp(-(th.arange(-radius, radius + 1).to(picture) ** 2) / (2 * BLUR_SIGMA**2))
    kernel = (bump / bump.sum()).reshape(1, 1, 1, -1)
    channels = F.pad(picture.transpose(0, 1), (radius,) * 4, mode="replicate")  # (C, 1, H + 2r, W + 2r)
    return F.conv2d(F.conv2d(channels, kernel), kernel.transpose(2, 3)).transpose(0, 1)


def overlay(screen: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """A screen, the redder the higher the saliency; the highest of each picture is equally red.

    Args:
        screen: (height, width, 3) uint8.
        heat: (rows, columns), at least 0.

    Returns:
        (height, width, 3) uint8.
    """
    height, width, _ = screen.shape
    relative = (heat / max(float(heat.max()), 1e-12)).astype(np.float32)
    smooth = np.asarray(Image.fromarray(relative).resize((width, height), Image.Resampling.BILINEAR))
    share = STRENGTH * smooth.clip(0, 1)[..., None]  # (height, width, 1)
    return (screen * (1 - share) + np.array([255, 0, 0]) * share).astype(np.uint8)


class SaliencyOverlay:
    """Draws saliency onto a running game; a map is kept for a few screens, as it costs 145 forward passes.

    Args:
        model: The agent.
        every: Screens that share one map.
    """

    def __init__(self, model: BaseAlgorithm, every: int = 4) -> None:
        self._model, self._every = model, every
        self._screens = 0
        self._heat = np.zeros((1, 1), np.float32)

    def __call__(self, observation: np.ndarray, screen: np.ndarray) -> np.ndarray:
        """The screen with the saliency of its observation, (channels, H, W) uint8, or of one a little older."""
        if self._screens % self._every == 0:
            self._heat = saliency(self._model, observation)
        self._screens += 1
        return overlay(screen, self._heat)
