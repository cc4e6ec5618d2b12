"""What a study found, as rows of a CSV and as tables: every candidate, and every option over all candidates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from experiments.cli.results import markdown_table
from experiments.searching.config import SearchConfig
from experiments.searching.settings import SETTINGS
from experiments.searching.space import KNOWN_CHOICES, SPACE, spec_of

if TYPE_CHECKING:
    import optuna

CHOICES = SPACE | SETTINGS
_SCORE = "score_"


def rows_of(study: optuna.Study, config: SearchConfig) -> list[dict[str, str]]:
    """A row a candidate, those that got furthest first and the best of them before the others; "" where it never came.

    Columns: candidate, cost, ``score_MARK`` for every rung, and every choice.
    """
    trials = [trial for trial in study.get_trials() if "cost" in trial.user_attrs]
    trials.sort(key=lambda trial: max(trial.intermediate_values.items(), default=(0, 0.0)), reverse=True)
    once: dict[str, optuna.trial.FrozenTrial] = {}  # a candidate that is proposed again is refused
    for trial in trials:
        once.setdefault(trial.user_attrs["candidate"], trial)
    choices_of_it = SETTINGS if config.what == "settings" else SPACE
    known = {spec_of(choices).name: name for name, choices in KNOWN_CHOICES.items()}
    rows = []
    for trial in once.values():
        values = trial.intermediate_values
        scores = {f"{_SCORE}{mark}": f"{values[mark]:.3f}" if mark in values else "" for mark in config.marks}
        candidate = trial.user_attrs["candidate"]
        cost = {"candidate": known.get(candidate, candidate), "cost": f"{trial.user_attrs['cost']:.2f}"}
        rows.append(cost | scores | {name: trial.params.get(name, "") for name in choices_of_it})
    return rows


def candidates_table(rows: Sequence[dict[str, str]]) -> str:
    """A line a candidate."""
    marks = _marks(rows)
    headings = ["candidate", "cost", *(f"score at {mark:,}" for mark in marks), "options"]
    lines = []
    for row in rows:
        options = ", ".join(f"{name} {row[name]}" for name in CHOICES if row.get(name))
        lines.append([row["candidate"], f"{row['cost']}x", *(row[f"{_SCORE}{mark}"] for mark in marks), options])
    return markdown_table(headings, lines)


def options_table(rows: Sequence[dict[str, str]]) -> str:
    """A line an option of every choice that was taken in more than one way: what candidates with it scored.

    At the first rung, which all came to that were within the budget; the best one at the last.
    """
    marks = _marks(rows)
    trained = [row for row in rows if row[f"{_SCORE}{marks[0]}"]]
    lines = []
    for name, options in CHOICES.items():
        taken = [option for option in options if any(row.get(name) == option for row in trained)]
        for option in taken if len(taken) > 1 else ():
            starts, ends = (_scores(trained, name, option, mark) for mark in (marks[0], marks[-1]))
            best = f"{max(ends):.3f}" if ends else ""
            lines.append([name, option, str(len(starts)), f"{sum(starts) / len(starts):.3f}", best])
    headings = ["choice", "option", "candidates", f"mean at {marks[0]:,}", f"best at {marks[-1]:,}"]
    return markdown_table(headings, lines)


def _scores(rows: Sequence[dict[str, str]], name: str, option: str, mark: int) -> list[float]:
    """Of the candidates with an option that came to a rung."""
    return [float(row[f"{_SCORE}{mark}"]) for row in rows if row.get(name) == option and row[f"{_SCORE}{mark}"]]


def _marks(rows: Sequence[dict[str, str]]) -> list[int]:
    return [int(name.removeprefix(_SCORE)) for name in rows[0] if name.startswith(_SCORE)]
