"""Published learning curves of NatureCNN, to check our own against: a weak baseline is easily beaten."""

from __future__ import annotations

# PPO with rl-zoo's Atari hyperparameters and 8 environments, one run a game: raw score, mean of the last 100 training
# games before the mark, counted from the monitor files of github.com/DLR-RM/rl-trained-agents, commit cd35bde.
NATURE_PPO_SOURCE = "rl-trained-agents"
PUBLISHED_TIMESTEPS = (250_000, 500_000, 1_000_000, 2_000_000, 3_000_000, 5_000_000, 10_000_000)
_ROWS = {
    "pong": (-20.3, -18.6, -12.0, 15.1, 20.3, 20.8, 21.0),
    "breakout": (9.4, 14.6, 25.7, 58.1, 114, 248, 393),
    "space_invaders": (224, 229, 408, 515, 611, 648, 962),
    "qbert": (280, 396, 801, 1924, 3766, 6185, 15827),
    "seaquest": (534, 729, 836, 882, 878, 785, 1775),
    "beam_rider": (447, 540, 590, 1119, 1517, 2039, 3530),
    "ms_pacman": (591, 766, 769, 842, 980, 1502, 1722),
    "enduro": (2.7, 63, 172, 331, 273, 452, 918),
    "road_runner": (2357, 2710, 15785, 26245, 28520, 34012, 40142),
    "asteroids": (1559, 1441, 1307, 1750, 1598, 1617, 2235),
}
NATURE_PPO_SCORES = {game: dict(zip(PUBLISHED_TIMESTEPS, row, strict=True)) for game, row in _ROWS.items()}
