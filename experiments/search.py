"""Search for an encoder within a cost budget, or for PPO's settings, on games of your choice; print what to paste.

python experiments/search.py --games procgen/starpilot procgen/leaper --budget 0.5 --n-candidates 50
python experiments/search.py --by copies --games pong breakout --budget 0.5 --n-candidates 60 --rungs 2
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
    from experiments.cli.starting import leave_on_interrupt

    leave_on_interrupt()

from experiments.benchmarking.measuring import machine
from experiments.cli.command import INTERRUPTED_CODE, interrupts, parse, user_errors
from experiments.cli.results import shown
from experiments.racing.planning import CONFIGS, family_defaults
from experiments.searching.config import SearchConfig
from experiments.searching.costs import write_costs
from experiments.searching.settings import settings_of
from experiments.searching.space import spec_of
from experiments.searching.studying import open_study, run_search
from experiments.searching.table import CHOICES, candidates_table, options_table, rows_of
from mnv4_rl.games import family_of
from mnv4_rl.performance import tune
from mnv4_rl.safe_files import write_csv

if TYPE_CHECKING:
    import optuna


@interrupts()
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
    """Every candidate, every option, and what the best one needs: its row as code, or its flags."""
    rows = rows_of(study, config)
    if not rows:
        return f"no candidate yet\nstudy        {shown(config.path)}"
    text = [candidates_table(rows), "", options_table(rows), ""]
    best = rows[0]
    if best[f"score_{config.marks[0]}"]:
        picked = {name: option for name, option in best.items() if name in CHOICES and option}
        row = flags_of(picked, config) if config.what == "settings" else pformat(spec_of(picked), width=110)
        text += [f"# at {best['cost']} of the cost", row, ""]
    table = config.path / "candidates.csv"
    about = machine() | {"study": ", ".join(f"{name}={value}" for name, value in study.user_attrs.items())}
    write_csv(table, rows, comments=[f"{key}: {value}" for key, value in about.items()])
    return "\n".join([*text, f"study        {shown(config.path)}", f"table        {shown(table)}"])


def flags_of(picked: dict[str, str], config: SearchConfig) -> str:
    """The flags with which the training command of these games takes the encoder and these settings."""
    n_envs, ppo = settings_of(picked, config.ppo, config.total_timesteps)
    default = CONFIGS[family_of(config.games[0])]().ppo
    changed = {name: value for name, value in vars(ppo).items() if value != getattr(default, name)}
    flags = (f"--ppo.{name.replace('_', '-')} {value}" for name, value in changed.items())
    return " ".join([f"--n-envs {n_envs} --encoder {config.encoder}", *flags])


if __name__ == "__main__":
    main()
