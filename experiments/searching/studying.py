"""The study: candidates from a space, measured, scored on the tuning games, and halved.

A candidate is an encoder, or PPO's settings for one. An encoder's forward and backward pass is timed beside
NatureCNN's first; one over the budget is refused before it trains. The others train on all games up to the first rung,
and only those whose score is among the best so far go on to the next (asynchronous successive halving). The study is a
SQLite file, or in a database: processes may work on it side by side, by hand or on Ray, and the same command goes on
with what a killed one left.
"""

from __future__ import annotations

import warnings
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any

from agents import INSTALL_LINE
from agents.encoders import add_encoder
from agents.runs.lock import FolderInUseError
from experiments.engines.on_ray import run_all
from experiments.searching.config import SearchConfig
from experiments.searching.costs import relative_cost
from experiments.searching.scoring import SCORED, Candidate
from experiments.searching.settings import SETTINGS, name_of, relative_updates, settings_of
from experiments.searching.space import KNOWN_CHOICES, pick, spec_of
from experiments.study.cloning import published_agent
from mnv4_rl.games import resolve_game
from mnv4_rl.performance import tune
from mnv4_rl.safe_files import make_folder

if TYPE_CHECKING:
    import optuna

HEARTBEAT_SECONDS = 60  # a process that says nothing for three of them is taken for dead, and its candidate tried again
_OF_THE_STUDY = (
    "by",  # first: a study without it is older than the flag
    "what",
    "encoder",
    "games",
    "teachers",
    "seed",
    "budget",
    "total_timesteps",
    "updates",
    "rungs",
    "reduction",
    "n_envs",
    "device",
    "ppo",
)


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
    if left > 0 and config.what == "encoder":
        for choices in KNOWN_CHOICES.values():  # what is known is where a search begins, and what it has to beat
            study.enqueue_trial(choices, skip_if_exists=True)
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
        ValueError: If it has other settings, with the first difference; if none is to be begun.
    """
    optuna = _import_optuna()
    if not config.n_candidates and config.storage is None and not config.path.is_dir():
        raise ValueError(f"There is no study in {config.path} to show, and --n-candidates 0 begins none.")
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
    games = [resolve_game(game) for game in config.games]
    teachers = [published_agent(game).parent.name for game in games] if config.by == "copies" else []
    given = asdict(config) | {"games": games, "teachers": teachers}
    settings = {name: given[name] for name in _OF_THE_STUDY}
    known = study.user_attrs
    # A study from before there was --by had the defaults of today's settings.
    unsaid = asdict(SearchConfig()) if known and "by" not in known else {}
    for name, value in settings.items():
        found = known.get(name, unsaid.get(name, value))
        if found != value:
            raise ValueError(
                f"The study in {config.path} has {name}={found!r}, this one {value!r}; give it another --name."
            )
    for name, value in settings.items():  # once all of them are known to fit
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
    """Mean score over the games at the end, see :mod:`experiments.searching.scoring`.

    Raises:
        TrialPruned: If the candidate is over the budget, was tried before, or fell behind.
        KeyboardInterrupt: If asked to stop; the candidate waits to be tried again.
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
    try:
        return _climb(config, trial, candidate)
    except FolderInUseError as error:  # proposed twice
        raise optuna.TrialPruned(f"{name} is tried by another process now.") from error
    except KeyboardInterrupt:
        study.enqueue_trial(trial.params)
        raise


def _climb(config: SearchConfig, trial: optuna.Trial, candidate: Candidate) -> float:
    """From rung to rung."""
    score = float("nan")
    for mark, found in zip(config.marks, SCORED[config.by](candidate, config), strict=True):
        score = found.mean
        trial.set_user_attr(f"scores_{mark}", found.by_game)
        trial.report(score, mark)
        if mark < config.marks[-1] and trial.should_prune():
            raise _import_optuna().TrialPruned(f"{candidate.name} fell behind with {score:.3f} at {mark:,}.")
    return score


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
