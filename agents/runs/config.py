"""What a run is, as data: settings that can be checked, written down, and turned into the command that repeats it."""

from __future__ import annotations

import re
import shlex
from abc import ABC, abstractmethod
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecEnv

from agents.dqn import ALGOS, DQNHyperparameters, build_dqn
from agents.encoders import policy_kwargs
from agents.ppo import PRESETS, Loop, PPOHyperparameters, build_ppo, check_loop, check_rollout
from agents.runs.families import FAMILIES, Family
from mnv4_rl.checks import Interval, check_ranges
from mnv4_rl.models.registry import DEFAULT_VARIANT
from mnv4_rl.performance import THREADS
from mnv4_rl.plain import numbers_as_pythons
from mnv4_rl.procgen import ProcgenOptions

N_ENVS = Interval(1, 4096)  # far past any use; ALE makes as many emulators as it is told, until memory ends
TIMESTEPS = Interval(1, 10**12)
# ALE's seeds end at 2**31 - 1, and environments and evaluations use the numbers above a run's seed.
SEED = Interval(0, 2 * 10**9)
_RANGES = {
    "total_timesteps": TIMESTEPS,
    "n_envs": N_ENVS,
    "seed": SEED,
    "threads": THREADS,
    "keep_checkpoints": Interval(1),
    "evaluation_games": Interval(0),
    "eval_every": Interval(0),
    "checkpoint_every": Interval(0),
}
_WORD = re.compile(r"\w[\w .+-]*", re.ASCII)
_PLACES = ("run_dir", "resume")  # where a run is written, not what it is
_ALWAYS_SAID = ("game", "total_timesteps", "encoder", "seed")  # in a new run's command, defaults or not


@dataclass(frozen=True, kw_only=True)
class RunConfig(ABC):
    """Settings of every run. A subclass is an algorithm; a subclass of that may be of another family of games."""

    family: ClassVar[str] = "atari"  # a key of FAMILIES
    command: ClassVar[str]  # its script in experiments/
    algos: ClassVar[tuple[str, ...]]  # names that algo may have

    game: str = "pong"
    """Any of ALE's games, by any common spelling."""
    total_timesteps: int = 1_000_000
    """Agent timesteps (decisions) to train; each is 4 emulator frames."""
    encoder: str = DEFAULT_VARIANT
    """nature, impala, impoola, or any name of mnv4_rl.list_models()."""
    seed: int = 0
    """Seed of weights, actions and games."""
    n_envs: int = 8
    """Games played side by side."""
    run_dir: Path | None = None
    """Folder for everything the run writes; a new one under runs/ by default."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Numbers the encoder computes in; bf16 is faster on GPUs and many CPUs, and changes what is learned."""
    compile: bool = False
    """Compile the encoder (CUDA graphs on a GPU); stays uncompiled, with a warning, where that fails."""
    threads: int | None = None
    """CPU threads of PyTorch and of the emulators; all cores by default."""
    evaluation_games: int = 30
    """Whole games played by the final model; 0 for none."""
    eval_every: int = 0
    """Agent timesteps between evaluations during training, each of --evaluation-games games; 0 for none."""
    checkpoint_every: int = 50_000
    """Agent timesteps between two checkpoints; 0 writes one only when the run ends or is stopped."""
    keep_checkpoints: int = 3
    """Checkpoints kept, the newest ones."""
    resume: Path | None = None
    """Go on with the run in this folder; needs no other flag."""

    def __post_init__(self) -> None:
        numbers_as_pythons(self)
        for name in _PLACES:
            if isinstance(place := getattr(self, name), str):
                object.__setattr__(self, name, Path(place))
        if isinstance(self.device, th.device):
            object.__setattr__(self, "device", str(self.device))

    @property
    @abstractmethod
    def algo(self) -> str:
        """Name of the algorithm."""

    @property
    def keeps_replay(self) -> bool:
        """Whether the replay buffer goes into checkpoints."""
        return False

    @property
    def games(self) -> Family:
        """The kind of games."""
        return FAMILIES[self.family]

    @property
    def name(self) -> str:
        """<game>__<algo>__<encoder>__s<seed>, fit for a folder."""
        game = self.games.resolve_game(self.game).replace("/", "_")
        return run_name(game, self.algo, self.encoder, self.seed)

    @abstractmethod
    def build(self, env: VecEnv) -> BaseAlgorithm:
        """The model that is to be trained in these environments."""

    def check(self) -> None:
        """Refuse settings that cannot work, before anything is written.

        Raises:
            ValueError: Naming the setting, what came and what is allowed.
        """
        self.games.resolve_game(self.game)
        policy_kwargs(self.encoder)
        check_ranges(self, _RANGES)
        if self.eval_every and not self.evaluation_games:
            raise ValueError(f"eval_every={self.eval_every} needs games to play; give evaluation_games too, not 0.")
        check_device(self.device)


@dataclass(frozen=True, kw_only=True)
class PPOConfig(RunConfig):
    """Train PPO on an Atari game from pixels; the run folder gets curves for TensorBoard, the model and its scores."""

    command: ClassVar[str] = "atari_ppo"
    algos: ClassVar[tuple[str, ...]] = ("ppo",)

    loop: Loop = "auto"
    """sb3, device (made for a GPU) or captured (CUDA graphs), all with the same numbers; auto is sb3 on a CPU."""
    ppo: PPOHyperparameters = field(default_factory=PPOHyperparameters)
    """PPO's settings; rl-zoo's Atari values by default."""

    @property
    def algo(self) -> str:
        """Name of the algorithm."""
        return "ppo"

    def build(self, env: VecEnv) -> BaseAlgorithm:
        """As :func:`agents.ppo.build_ppo`."""
        return build_ppo(
            env,
            self.encoder,
            total_timesteps=self.total_timesteps,
            hyperparameters=self.ppo,
            seed=self.seed,
            device=self.device,
            loop=self.loop,
        )

    def check(self) -> None:
        """As :meth:`RunConfig.check`, PPO's settings too."""
        super().check()
        check_loop(self.loop, self.device)
        check_rollout(self.ppo, self.n_envs)


@dataclass(frozen=True, kw_only=True)
class ProcgenPPOConfig(PPOConfig):
    """Train PPO on a Procgen game, some of its levels; the final agent is evaluated on these and on all the others."""

    family: ClassVar[str] = "procgen"
    command: ClassVar[str] = "procgen_ppo"

    game: str = "starpilot"
    """Any of Procgen's 16 games, by any common spelling."""
    total_timesteps: int = 2_000_000
    """Agent timesteps (decisions) to train."""
    n_envs: int = 64
    """Episodes played side by side."""
    evaluation_games: int = 100
    """Whole episodes played by the final model, on the training levels and again on unseen ones; 0 for none."""
    levels: ProcgenOptions = ProcgenOptions(num_levels=200)  # noqa: RUF009  frozen
    """The levels to train on."""
    ppo: PPOHyperparameters = PRESETS["procgen"]
    """PPO's settings; those of Procgen's paper by default."""


@dataclass(frozen=True, kw_only=True)
class DQNConfig(RunConfig):
    """Train DQN on an Atari game from pixels; the run folder gets curves for TensorBoard, the model and its scores."""

    command: ClassVar[str] = "atari_dqn"
    algos: ClassVar[tuple[str, ...]] = ALGOS

    algo: Literal["dqn", "qrdqn"] = "dqn"
    """dqn, or qrdqn from sb3-contrib."""
    checkpoint_replay: bool = False
    """Put the replay buffer into checkpoints, compressed; without it a resumed run first fills a new one."""
    dqn: DQNHyperparameters = field(default_factory=DQNHyperparameters)
    """DQN's settings; rl-zoo's Atari values by default."""

    @property
    def keeps_replay(self) -> bool:
        """Whether the replay buffer goes into checkpoints."""
        return self.checkpoint_replay

    def build(self, env: VecEnv) -> BaseAlgorithm:
        """As :func:`agents.dqn.build_dqn`."""
        return build_dqn(
            env, self.encoder, algo=self.algo, hyperparameters=self.dqn, seed=self.seed, device=self.device
        )

    def check(self) -> None:
        """As :meth:`RunConfig.check`, DQN's settings too, and that there are updates at all."""
        super().check()
        self.dqn.check()
        if self.dqn.learning_starts >= self.total_timesteps:
            raise ValueError(
                f"dqn.learning_starts={self.dqn.learning_starts:,} leaves no update in total_timesteps="
                f"{self.total_timesteps:,}; lower --dqn.learning-starts, or train longer."
            )


def run_name(game: object, algo: object, encoder: object, seed: object) -> str:
    """<game>__<algo>__<encoder>__s<seed>, the name of a run's folder and of what is published of it.

    Raises:
        ValueError: If a part is of another type, or would land in another folder.
    """
    words = (game, algo, encoder)
    if type(seed) is not int or not all(isinstance(word, str) and _WORD.fullmatch(word) for word in words):
        raise ValueError(f"game, algo, encoder and seed {(*words, seed)!r:.200} do not make a name for files.")
    return f"{game}__{algo}__{encoder}__s{seed}"


def check_device(device: str) -> None:
    """Refuse a device this machine does not have.

    Raises:
        ValueError: For an unknown name, or CUDA where there is none.
    """
    kind, _, index = str(device).partition(":")
    if kind not in ("auto", "cpu", "cuda") or (index and not index.isdigit()):
        raise ValueError(f"device must be auto, cpu, cuda or cuda:N, got {device!r}.")
    if kind == "cuda" and int(index or 0) >= th.cuda.device_count():
        raise ValueError(f"PyTorch sees {th.cuda.device_count()} CUDA devices here, got {device!r}; use auto or cpu.")


def command_line(config: RunConfig, recorded: RunConfig | None = None) -> str:
    """The command that trains what a config says, whoever called the function: equal configs, equal lines.

    Args:
        config: The settings.
        recorded: For a resumed run, those it had before: the line then names the folder and what changed.
    """
    if config.resume is None:
        words = [word for name in _ALWAYS_SAID for word in _flag(name, getattr(config, name))]
    else:
        words = ["--resume", str(config.resume)]
    changed = _flags(config, recorded or type(config)(), skipped=_PLACES if recorded else (*_PLACES, *_ALWAYS_SAID))
    return shlex.join(["python", f"experiments/{config.command}.py", *words, *changed])


def _flags(settings: Any, defaults: Any, prefix: str = "", skipped: tuple[str, ...] = ()) -> list[str]:
    """Flags of the settings that differ from the defaults."""
    words: list[str] = []
    for name in (setting.name for setting in fields(settings) if setting.name not in skipped):
        value, default = getattr(settings, name), getattr(defaults, name)
        if is_dataclass(value):
            words += _flags(value, default, f"{prefix}{name}.")
        elif value != default:
            words += _flag(name, value, prefix)
    return words


def _flag(name: str, value: Any, prefix: str = "") -> list[str]:
    flag = name.replace("_", "-")
    if isinstance(value, bool):
        return [f"--{prefix}{flag}" if value else f"--{prefix}no-{flag}"]
    return [f"--{prefix}{flag}", str(value)]
