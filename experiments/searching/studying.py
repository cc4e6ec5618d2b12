"""The study: candidates from a space, measured, trained on the tuning games, and halved.

A candidate is an encoder, or PPO's settings for one. An encoder's forward and backward pass is timed beside
NatureCNN's first; one over the budget is refused before it trains. The others train on all games up to the first rung,
and only those whose score is among the best so far go on to the next (asynchronous successive halving). The study is a
SQLite file, or in a database: processes may work on it side by side, by hand or on Ray, and the same command goes on
with what a killed one left.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch as th
from gymnasium import spaces

from agents.encoders import add_encoder, policy_kwargs
from agents.ppo import PPOHyperparameters, check_rollout
from agents.runs import train_run
from agents.runs.config import N_ENVS, SEED, TIMESTEPS, check_device
from agents.runs.lock import FolderInUseError
from agents.runs.resuming import recorded_config
from experiments.benchmarking.encoders import make_call
from experiments.benchmarking.measuring import Ratio, calls_per_second, interleave, ratio
from experiments.cli.results import check_file_name
from experiments.engines.config import EngineConfig
from experiments.engines.on_ray import run_all
from experiments.racing.planning import CONFIGS
from experiments.racing.protocol import REFERENCE, check_tuning
from experiments.searching.settings import SETTINGS, name_of, relative_updates, settings_of
from experiments.searching.space import pick, spec_of
from mnv4_rl.checks import Interval, check_positive, check_range, check_ranges
from mnv4_rl.games import family_of, reference_scores, resolve_game
from mnv4_rl.models.specs import NetworkSpec
from mnv4_rl.performance import THREADS, tune
from mnv4_rl.safe_files import make_folder

if TYPE_CHECKING:
    import optuna

INSTALL_LINE = "python -m pip install -c constraints.txt -e . -r requirements.txt"
HEARTBEAT_SECONDS = 60  # a process that says nothing for three of them is taken for dead, and its candidate tried again
IMAGES = {"atari": (4, 84, 84), "procgen": (3, 64, 64)}
_RANGES = {
    "budget": Interval(0, includes_low=False),
    "n_candidates": Interval(0),
    "total_timesteps": TIMESTEPS,
    "n_envs": N_ENVS,
    "seed": SEED,
    "threads": THREADS,
    "min_seconds": Interval(0),
}
_OF_THE_STUDY = (
    "what",
    "encoder",
    "games",
    "seed",
    "budget",
    "total_timesteps",
    "rungs",
    "reduction",
    "n_envs",
    "device",
    "ppo",
)


@dataclass(frozen=True, kw_only=True)
class SearchConfig(EngineConfig):
    """Search for the encoder, or the settings, that learn most within a cost budget, on games of your choice."""

    name: str = "encoders"
    """Name of the study: its folder under search_dir."""
    what: Literal["encoder", "settings"] = "encoder"
    """What to search: an encoder for PPO's settings as given, or those settings for one encoder."""
    encoder: str = "rl_s"
    """Whose settings are searched."""
    games: tuple[str, ...] = ("procgen/starpilot",)
    """Games to choose by, all of Atari or all of Procgen; those kept for tests are refused."""
    budget: float = 1.0
    """Most a candidate may cost: an encoder's forward and backward pass, NatureCNN's being 1; settings' passes over
    each timestep, those of the settings as given being 1."""
    n_candidates: int = 50
    """Candidates in the study, those of earlier calls and other processes included; 0 only shows it."""
    total_timesteps: int = 2_000_000
    """Agent timesteps of a candidate that is never stopped, on each game."""
    rungs: int = 3
    """Times at which candidates are compared, the end included."""
    reduction: int = 3
    """One in so many goes on from a rung to the next, which is so many times as far."""
    seed: int = 0
    """Seed of every run."""
    n_envs: int = 8
    """Games played side by side in each run; on Procgen 64 by default. Of no meaning where settings are searched."""
    threads: int = 1
    """CPU threads of each run."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    batch: int = 256
    """Images in the pass that is timed."""
    rounds: int = 5
    """Rounds of timing, of which the median counts."""
    min_seconds: float = 0.2
    """Seconds of passes in one round."""
    costs: bool = False
    """Search nothing: time rl_s with each option of the space in turn, and write a table of it."""
    search_dir: Path = Path("runs/search")
    """Folder for the study and its runs."""
    storage: str | None = None
    """Database of the study, such as postgresql://me@host/studies; a SQLite file in its folder by default."""
    ppo: PPOHyperparameters = field(default_factory=PPOHyperparameters)
    """PPO's settings; on Procgen those of its paper by default."""

    @property
    def path(self) -> Path:
        """Folder of the study."""
        return self.search_dir.expanduser().absolute() / self.name

    @property
    def marks(self) -> tuple[int, ...]:
        """Agent timesteps of the rungs, rising."""
        return tuple(self.total_timesteps // self.reduction**rung for rung in reversed(range(self.rungs)))

    def check(self) -> None:
        """Refuse flags that cannot work, and games and seeds that are kept for tests.

        Raises:
            ValueError: Naming the flag, what came and what is allowed.
        """
        check_file_name(self.name)
        self.check_engine()
        if self.jobs and self.engine == "processes":
            raise ValueError(f"--jobs {self.jobs} needs --engine ray; without it, start this command several times.")
        check_ranges(self, _RANGES)
        check_positive(batch=self.batch, rounds=self.rounds, rungs=self.rungs)
        check_range("reduction", self.reduction, Interval(2))
        check_rollout(self.ppo, self.n_envs)
        check_device(self.device)
        policy_kwargs(self.encoder)
        games = [resolve_game(game) for game in self.games]
        if not games or len({family_of(game) for game in games}) > 1 or len(set(games)) != len(games):
            raise ValueError(f"games must be of one kind, none twice, got {', '.join(games) or 'none'}.")
        if unscaled := [game for game in games if reference_scores(game) is None]:
            raise ValueError(f"There are no reference scores for {', '.join(unscaled)}; leave it out.")
        check_tuning(games, [self.seed])
        if self.marks[0] < 1:
            raise ValueError(f"total_timesteps={self.total_timesteps} is too little for {self.rungs} rungs.")


def run_search(config: SearchConfig) -> optuna.Study:
    """Try candidates until the study has as many as the config says.

    Raises:
        ModuleNotFoundError: Optuna is missing; the message has the command.
        ValueError: A setting that cannot work, or a study of other settings.
        KeyboardInterrupt: After Ctrl-C or SIGTERM, once the run under way is saved.
    """
    config.check()
    study = open_study(config)
    left = _n_left(config, study)
    if left > 0 and config.engine == "ray":
        results = run_all(config, try_candidate, [config] * left, config.path, n_cpus=config.threads)
        if failed := [error for error in results if error is not None]:
            raise RuntimeError(f"{len(failed)} of {left} candidates failed; the first: {failed[0]}") from failed[0]
    elif left > 0:
        try_candidates(config, study, left)
    return study


def try_candidate(config: SearchConfig) -> None:
    """Try one, if the study has not enough: what a task on Ray does."""
    study = open_study(config)
    if _n_left(config, study) > 0:
        try_candidates(config, study, 1)


def try_candidates(config: SearchConfig, study: optuna.Study, n_trials: int) -> None:
    """Try candidates in this process, fewer where the study has enough before that."""
    tune(config.threads)
    enough = _import_optuna().study.MaxTrialsCallback(config.n_candidates, states=_ended())
    study.optimize(partial(score_candidate, config, study), n_trials=n_trials, callbacks=[enough])


def _ended() -> tuple[Any, ...]:
    states = _import_optuna().trial.TrialState
    return states.COMPLETE, states.PRUNED


def _n_left(config: SearchConfig, study: optuna.Study) -> int:
    return config.n_candidates - len(study.get_trials(deepcopy=False, states=_ended()))


def open_study(config: SearchConfig) -> optuna.Study:
    """The study in a config's folder, begun where there is none.

    Raises:
        ValueError: If it has other settings, with the first difference.
    """
    optuna = _import_optuna()
    make_folder(config.path)
    storage = _open_storage(config)
    study = optuna.create_study(
        storage=storage,
        study_name=config.name,
        load_if_exists=True,
        direction="maximize",
        pruner=optuna.pruners.SuccessiveHalvingPruner(config.marks[0], config.reduction),
    )
    # Unseeded: every process and call proposes candidates of its own.
    study.sampler = optuna.samplers.TPESampler(multivariate=True, constant_liar=True)
    settings = {name: value for name, value in asdict(config).items() if name in _OF_THE_STUDY}
    settings["games"] = [resolve_game(game) for game in config.games]
    for name, value in settings.items():
        found = study.user_attrs.get(name, value)
        if found != value:
            raise ValueError(
                f"The study in {config.path} has {name}={found!r}, this one {value!r}; give it another --name."
            )
        study.set_user_attr(name, value)
    return study


def _open_storage(config: SearchConfig) -> Any:
    optuna = _import_optuna()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # heartbeats are, since 2021
            return optuna.storages.RDBStorage(
                f"sqlite:///{config.path / 'study.db'}" if config.storage is None else config.storage,
                heartbeat_interval=HEARTBEAT_SECONDS,
                grace_period=3 * HEARTBEAT_SECONDS,
                heartbeat_stale_trial_callback=optuna.storages.RetryHeartbeatStaleTrialCallback(max_retry=3),
            )
    except Exception as error:  # SQLAlchemy's and its drivers' are of every kind
        where = config.path / "study.db" if config.storage is None else "--storage"
        raise ValueError(f"{where} cannot be opened as a study: {error}") from error


def score_candidate(config: SearchConfig, study: optuna.Study, trial: optuna.Trial) -> float:
    """Mean normalised score over the games at the end of training.

    Raises:
        TrialPruned: If the candidate is over the budget, was tried before, or fell behind.
    """
    optuna = _import_optuna()
    candidate = propose(config, trial)
    name, cost = candidate.name, candidate.cost
    trial.set_user_attr("candidate", name)
    trial.set_user_attr("cost", cost)
    if cost > config.budget:
        raise optuna.TrialPruned(f"{name} costs {cost:.2f}, the budget is {config.budget:g}.")
    if _tried_before(study, trial, name):
        raise optuna.TrialPruned(f"{name} was tried before.")
    score = float("nan")
    for timesteps in config.marks:
        try:
            scores = {game: train_to(timesteps, candidate, game, config) for game in map(resolve_game, config.games)}
        except FolderInUseError as error:  # proposed twice
            raise optuna.TrialPruned(f"{name} is tried by another process now.") from error
        trial.set_user_attr(f"scores_{timesteps}", scores)
        score = mean_normalised(scores)
        trial.report(score, timesteps)
        if timesteps < config.total_timesteps and trial.should_prune():
            raise optuna.TrialPruned(f"{name} fell behind with {score:.3f} at {timesteps:,} timesteps.")
    return score


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One point of a space.

    Attributes:
        name: Its own among all points.
        cost: As ``SearchConfig.budget`` counts it.
        encoder: The encoder that trains.
        n_envs: Games played side by side.
        ppo: PPO's settings.
    """

    name: str
    cost: float
    encoder: str
    n_envs: int
    ppo: PPOHyperparameters


def propose(config: SearchConfig, trial: optuna.Trial) -> Candidate:
    """The candidate that Optuna asks for."""
    if config.what == "settings":
        picked = {name: trial.suggest_categorical(name, list(options)) for name, options in SETTINGS.items()}
        n_envs, ppo = settings_of(picked, config.ppo, config.total_timesteps)
        cost = relative_updates(ppo, config.ppo)
        return Candidate(name=name_of(picked), cost=cost, encoder=config.encoder, n_envs=n_envs, ppo=ppo)
    spec = spec_of(pick(trial.suggest_categorical))
    add_encoder(spec.name, spec)
    cost = relative_cost(spec, config)
    return Candidate(name=spec.name, cost=cost, encoder=spec.name, n_envs=config.n_envs, ppo=config.ppo)


def relative_cost(spec: NetworkSpec, config: SearchConfig) -> float:
    """As :func:`relative_costs`, the median for one candidate."""
    return relative_costs([spec], config)[spec.name].median


def relative_costs(specs: Sequence[NetworkSpec], config: SearchConfig) -> dict[str, Ratio]:
    """Seconds of candidates' forward and backward passes over NatureCNN's in the same rounds, by name.

    CPU seconds on a CPU, which others may share.
    """
    shape = IMAGES[family_of(config.games[0])]
    device = "cuda" if config.device == "auto" and th.cuda.is_available() else config.device.replace("auto", "cpu")
    images = th.randint(0, 256, (config.batch, *shape), dtype=th.uint8, device=device)
    clock = time.perf_counter if images.is_cuda else time.process_time
    space, calls = spaces.Box(0, 255, shape, np.uint8), {}
    for spec in specs:
        add_encoder(spec.name, spec)
    for name in (REFERENCE, *(spec.name for spec in specs)):
        kwargs = policy_kwargs(name)
        model = kwargs["features_extractor_class"](space, **kwargs["features_extractor_kwargs"]).to(device)
        calls[name] = make_call(model, images, "forward+backward", "fp32")
        calls[name]()  # warm
    measures = {name: partial(calls_per_second, call, config.min_seconds, clock) for name, call in calls.items()}
    rates = interleave(measures, config.rounds, lambda: None)
    return {spec.name: ratio(rates[REFERENCE], rates[spec.name]) for spec in specs}


def train_to(timesteps: int, candidate: Candidate, game: str, config: SearchConfig) -> float:
    """A candidate's mean raw score of the last 100 games at a timestep, from where its run stands.

    Raises:
        KeyboardInterrupt: If the run was asked to stop; it is saved.
    """
    folder = config.path / f"{game.replace('/', '_')}__{candidate.name}"
    if (folder / "config.yml").is_file():
        run = replace(recorded_config(CONFIGS[family_of(game)], folder), total_timesteps=timesteps)
    else:
        run = CONFIGS[family_of(game)](
            game=game,
            encoder=candidate.encoder,
            seed=config.seed,
            n_envs=candidate.n_envs,
            threads=config.threads,
            device=config.device,
            total_timesteps=timesteps,
            evaluation_games=0,
            keep_checkpoints=1,
            run_dir=folder,
            ppo=candidate.ppo,
        )
    outcome = train_run(run, quiet=True)
    if not outcome.finished:
        raise KeyboardInterrupt
    low = (reference_scores(game) or (0.0, 1.0))[0]
    return low if outcome.score is None else outcome.score  # no game ended: as good as the lowest


def mean_normalised(scores: Mapping[str, float]) -> float:
    """Mean over games of raw scores on the field's scale."""
    values = []
    for game, score in scores.items():
        low, high = reference_scores(game) or (0.0, 1.0)
        values.append((score - low) / (high - low))
    return float(np.mean(values))


def _tried_before(study: optuna.Study, trial: optuna.Trial, candidate: str) -> bool:
    others = study.get_trials(deepcopy=False)
    return any(
        other.user_attrs.get("candidate") == candidate and other.state in _ended()
        for other in others
        if other.number != trial.number
    )


def _import_optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise ModuleNotFoundError(f"The search needs Optuna: {INSTALL_LINE} ({error}).") from error
    return optuna
