"""What encoders are tuned on and what they are compared on: written down before the runs; docs/protocol.md says why."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

REFERENCE = "nature"  # every encoder is compared with it
FROZEN_COMMIT: str | None = "8b27d3cefa69"  # rl_s2 and rl_m2 and PPO's presets; None while they may still change


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """One kind of games.

    Attributes:
        tuning_games: Games that candidates are tried, chosen and shaped on.
        test_games: Games that frozen encoders alone are run on.
        tuning_seeds: Seeds of runs that choose.
        test_seeds: Seeds of runs that are reported.
        budget_timesteps: Agent timesteps of a reported run.
    """

    tuning_games: tuple[str, ...]
    test_games: tuple[str, ...]
    tuning_seeds: tuple[int, ...]
    test_seeds: tuple[int, ...]
    budget_timesteps: int


PROTOCOL = {
    "atari": Benchmark(
        # the three that rl_s was shaped on, then Atari-5-Val
        tuning_games=(
            "pong",
            "breakout",
            "enduro",
            "assault",
            "bank_heist",
            "ms_pacman",
            "video_pinball",
            "yars_revenge",
        ),
        test_games=("battle_zone", "double_dunk", "name_this_game", "phoenix", "qbert"),  # Atari-5
        tuning_seeds=tuple(range(10)),
        test_seeds=(100, 101, 102),
        budget_timesteps=1_000_000,
    ),
    "procgen": Benchmark(
        tuning_games=("procgen/starpilot", "procgen/bigfish", "procgen/coinrun", "procgen/leaper"),
        test_games=("procgen/jumper", "procgen/plunder", "procgen/miner", "procgen/fruitbot"),
        tuning_seeds=tuple(range(10)),
        test_seeds=(100, 101, 102),
        budget_timesteps=2_000_000,
    ),
}


def check_tuning(games: Iterable[str], seeds: Iterable[int]) -> None:
    """Refuse to choose by what is kept for the test.

    Args:
        games: Names as in :data:`PROTOCOL`.
        seeds: Seeds of the runs.

    Raises:
        ValueError: Naming the games or seeds, and those to take instead.
    """
    games, seeds = set(games), set(seeds)
    for benchmark in PROTOCOL.values():
        _refuse("game", games & set(benchmark.test_games), benchmark.tuning_games)
        _refuse("seed", seeds & set(benchmark.test_seeds), benchmark.tuning_seeds)


def kept_for_test(games: Iterable[str]) -> list[str]:
    """Those of some games that are kept for the test."""
    kept = {game for benchmark in PROTOCOL.values() for game in benchmark.test_games}
    return [game for game in games if game in kept]


def _refuse(what: str, kept: Iterable[object], instead: tuple[object, ...]) -> None:
    if kept:
        raise ValueError(
            f"{what} {', '.join(map(str, sorted(kept, key=str)))} is kept for the test of frozen encoders "
            f"(docs/protocol.md); choose by {', '.join(map(str, instead))}."
        )
