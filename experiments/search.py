"""Search for an encoder within a cost budget, or for PPO's settings, on games of your choice; print what to paste.

python experiments/search.py --games procgen/starpilot procgen/leaper --budget 0.5 --n-candidates 50
python experiments/search.py --what settings --encoder nature --games pong breakout --total-timesteps 400000

Needs Optuna, of requirements.txt. The same command goes on with a study that was stopped, several of them share one,
and --n-candidates 0 shows what is known. The spaces are ``space.py`` and ``settings.py`` of experiments/searching;
games and seeds that are kept for tests (docs/protocol.md) are refused.
"""

from __future__ import annotations

import sys
from pathlib import Path
from pprint import pformat
from typing import TYPE_CHECKING

if __package__ in (None, ""):  # run as a script: the checkout's packages are one folder up
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from experiments.cli.command import INTERRUPTED_CODE, parse, user_errors
from experiments.cli.results import markdown_table, shown
from experiments.racing.planning import family_defaults
from experiments.searching.costs import write_costs
from experiments.searching.settings import settings_of
from experiments.searching.space import spec_of
from experiments.searching.studying import SearchConfig, open_study, run_search
from mnv4_rl.performance import tune

if TYPE_CHECKING:
    import optuna


def main(args: list[str] | None = None) -> None:
    """Search, then show every candidate and the best one's row."""
    # The games say which defaults the other flags have.
    config = parse(SearchConfig, args, family_defaults(parse(SearchConfig, args)))
    with user_errors():
        config.check()
        if config.costs:
            tune(config.threads)
            print(write_costs(config))
            return
        open_study(config)
    interrupted = False
    try:
        study = run_search(config)
    except KeyboardInterrupt:
        interrupted, study = True, open_study(config)
    except ConnectionError:  # to a cluster
        with user_errors():
            raise
    print(summary(study, config))
    if interrupted:
        print("interrupted: the same command goes on")
        sys.exit(INTERRUPTED_CODE)


def summary(study: optuna.Study, config: SearchConfig) -> str:
    """A line a candidate, the best first, and what the best one needs: its row as code, or its flags."""
    trials = [trial for trial in study.get_trials() if "cost" in trial.user_attrs]
    trials.sort(key=lambda trial: -max(trial.intermediate_values.items(), default=(0, 0.0))[1])
    trials.sort(key=lambda trial: -max(trial.intermediate_values, default=0))  # those that got furthest first
    headings = ["candidate", "cost", *(f"score at {mark:,}" for mark in config.marks), "options"]
    text = [markdown_table(headings, [_row(trial, config.marks) for trial in trials]), ""]
    if trials and trials[0].intermediate_values:
        best = trials[0]
        row = flags_of(best.params, config) if config.what == "settings" else pformat(spec_of(best.params), width=110)
        text += [f"# at {best.user_attrs['cost']:.2f} of the cost", row, ""]
    return "\n".join([*text, f"study        {shown(config.path)}"])


def flags_of(picked: dict[str, str], config: SearchConfig) -> str:
    """The flags with which the training commands take these settings."""
    n_envs, ppo = settings_of(picked, config.ppo, config.total_timesteps)
    changed = {name: value for name, value in vars(ppo).items() if value != getattr(config.ppo, name)}
    return " ".join([f"--n-envs {n_envs}", *(f"--ppo.{name.replace('_', '-')} {v}" for name, v in changed.items())])


def _row(trial: optuna.trial.FrozenTrial, marks: tuple[int, ...]) -> list[str]:
    values = trial.intermediate_values
    scores = [f"{values[mark]:.3f}" if mark in values else "" for mark in marks]
    options = ", ".join(f"{name} {option}" for name, option in trial.params.items())
    return [trial.user_attrs["candidate"], f"{trial.user_attrs['cost']:.2f}x", *scores, options]


if __name__ == "__main__":
    main()
