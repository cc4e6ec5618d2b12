"""Race encoders: a matrix of PPO runs, encoder x game x seed, everything else equal; the curves go into one CSV.

python experiments/race.py --name pong --encoders nature rl_s2 --games pong --seeds 0 1 2 --jobs 2
python experiments/race.py --name starpilot --games procgen/starpilot --total-timesteps 2000000

Started again after it was stopped or killed, a race keeps the runs that finished; the others go on at their newest
checkpoint, or start again without one. Other runs that its CSV holds already stay in it, so a race may grow over days
and machines. Runs share the machine, so compare them on ``cpu_seconds``, the CPU time of each run's own process.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __package__ in (None, ""):  # run as a script: the checkout's packages are one folder up
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from experiments.cli.starting import leave_on_interrupt

    leave_on_interrupt()

from agents.runs.output import courteous_output
from experiments.cli.command import INTERRUPTED_CODE, interrupts, parse
from experiments.cli.results import RESULTS, script, shown, typed
from experiments.racing.planning import RaceConfig, family_defaults
from experiments.racing.running import Outcome, run_race

FAILED_CODE = 1


@courteous_output()
@interrupts()
def main(args: list[str] | None = None) -> None:
    """Train what is missing, collect, and say where the results are."""
    # The games say which defaults the other flags have.
    config = parse(RaceConfig, args, family_defaults(parse(RaceConfig, args)))
    outcome = run_race(config)
    print(summary(config, outcome))
    if outcome.interrupted:
        print("interrupted: the same command goes on, finished runs are kept")
        sys.exit(INTERRUPTED_CODE)
    if outcome.failed:
        sys.exit(FAILED_CODE)


def summary(config: RaceConfig, outcome: Outcome) -> str:
    """How many runs there are, where everything is, and how to report this race's part of the CSV."""
    chosen = {"encoders": config.encoders, "games": config.games, "seeds": config.seeds}
    flags = " ".join(f"--{flag} {' '.join(map(str, values))}" for flag, values in chosen.items())
    if "nature" not in config.encoders:  # what report.py compares with by itself
        flags += f" --reference {config.encoders[0]}"
    place = "" if config.results_dir == RESULTS else f" --results-dir {typed(config.csv.parent)}"
    lines = [f"{outcome.n_finished} of {outcome.n_runs} runs finished"]
    lines += [f"failed       see {shown(run.log)}" for run in outcome.failed]
    lines.append(f"run folders  {shown(config.path)}")
    if outcome.n_finished:
        lines += [
            f"curves       {shown(config.csv)}",
            f"report       {script('report')} --races {typed(config.csv)} {flags} --name {config.name}{place}",
        ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
