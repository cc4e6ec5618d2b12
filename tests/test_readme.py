"""README runs, Python and commands with tiny budgets; on every page the flags of commands and the links hold."""

import importlib
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import tyro

from experiments import model_table

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "experiments").rglob("*.md"))]
PYTHON = [code for language, code in BLOCKS if language == "python"]
COMMANDS = [line.split("#")[0].strip() for language, code in BLOCKS if language == "bash" for line in code.splitlines()]
# What makes each documented command short; the flags override those in the README.
PPO_BUDGET = (
    "--total-timesteps 256 --n-envs 2 --ppo.n-steps 32 --ppo.batch-size 64 --evaluation-games 0 --run-dir {run}"
)
BUDGETS = {
    "experiments/atari_ppo.py": PPO_BUDGET,
    "experiments/atari_dqn.py": "--total-timesteps 256 --dqn.learning-starts 128 --evaluation-games 0 --run-dir {run}",
    "experiments/custom_env.py": "--total-timesteps 256",
}


def test_only_languages_that_are_run():
    assert {language for language, _ in BLOCKS} <= {"python", "bash"}


@pytest.mark.parametrize("code", PYTHON, ids=lambda code: code.strip().splitlines()[-1][:40])
def test_python_block_runs(code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # some write files
    exec(compile(re.sub(r"total_timesteps=[\d_]+", "total_timesteps=8", code), "README.md", "exec"), {})


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("make ")])
def test_make_target_exists(command):
    subprocess.run([*shlex.split(command), "--dry-run"], cwd=ROOT, check=True, capture_output=True)


@pytest.mark.slow
@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("python ")])
def test_command_runs_from_any_folder(command, tmp_path):
    script, *flags = shlex.split(command)[1:]
    budget = shlex.split(BUDGETS[script].format(run=tmp_path / "run"))
    done = subprocess.run(
        [sys.executable, str(ROOT / script), *flags, *budget],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-2000:]


class Parsed(Exception):
    """Raised once a command's flags are read, before it does anything."""


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.parent.name + "/" + path.stem)
def test_flags_of_every_command_on_a_page_are_known(page, monkeypatch):
    read = tyro.cli

    def read_and_stop(*args, **kwargs):
        read(*args, **kwargs)
        raise Parsed

    monkeypatch.setattr(tyro, "cli", read_and_stop)
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    for script, flags in re.findall(r"python experiments/(\w+)\.py ([^`#]*?)(?=[`#]|\npython )", text):
        with pytest.raises(Parsed):
            importlib.import_module(f"experiments.{script}").main(shlex.split(flags))


def test_every_command_is_of_a_kind_that_is_checked():
    assert all(c.startswith(("make ", "python ", "pip install -c constraints.txt ")) for c in COMMANDS if c)


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.parent.name + "/" + path.stem)
def test_every_picture_and_every_link_leads_somewhere(page):
    targets = re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text(encoding="utf-8"))
    assert [target for target in targets if not (page.parent / target).exists()] == []


@pytest.mark.parametrize(
    "report", sorted((ROOT / "experiments" / "results").glob("race_*.md")), ids=lambda path: path.stem
)
def test_tables_of_races_are_those_of_their_reports(report):
    table = [line for line in report.read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    assert "\n".join(table) in README, f"copy the table from {report}"


def test_table_of_models_is_the_registry():
    assert model_table.with_table(README) == README, "run python experiments/model_table.py"
