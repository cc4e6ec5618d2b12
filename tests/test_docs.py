"""Every page runs: its Python, the flags of its commands, its links; translations and tables are as their source.

A docstring of the library that lacks what it needs is found here too.
"""

import ast
import importlib
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import tyro

from experiments import model_table

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
TRANSLATIONS = sorted(ROOT.glob("README.*.md"))
PAGES = [
    README,
    *TRANSLATIONS,
    ROOT / "CONTRIBUTING.md",
    ROOT / "SECURITY.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "experiments").rglob("*.md")),
]
TEXTS = {page: page.read_text(encoding="utf-8") for page in PAGES if page.exists()}


def name_of(page):
    return f"{page.parent.name}/{page.name}"


def blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```", TEXTS[page], flags=re.MULTILINE | re.DOTALL)


def commands(page):
    """Lines of the page's shell blocks, continued ones joined, comments left out."""
    lines = "".join(blocks(page, "bash")).replace("\\\n", " ").splitlines()
    return [line.split("#")[0].strip() for line in lines if line.split("#")[0].strip()]


def each(pages, reason=lambda page: True):
    return pytest.mark.parametrize("page", [page for page in pages if reason(page)], ids=name_of)


@each(TEXTS)
def test_only_languages_that_are_checked(page):
    assert set(re.findall(r"^```(\w+)", TEXTS[page], flags=re.MULTILINE)) <= {"python", "bash", "cpp", "yaml"}


SHORTER = {r"total_timesteps=[\d_]+": "total_timesteps=8", r"n_steps=\d+": "n_steps=16", r"n_epochs=\d+": "n_epochs=1"}
INDEX = ROOT / "docs" / "index.md"


def test_the_first_page_has_the_readmes_first_lines():
    assert blocks(INDEX, "python") == blocks(README, "python")[:1]


@each([page for page in TEXTS if page not in (*TRANSLATIONS, INDEX)], lambda page: blocks(page, "python"))
def test_python_of_a_page_runs_from_top_to_bottom(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # some write files
    for directory in ("experiments", "examples"):
        if (ROOT / directory).exists():
            (tmp_path / directory).symlink_to(ROOT / directory)
    namespace = {"__name__": "a_page"}
    for block in blocks(page, "python"):
        code = block
        for longer, shorter in SHORTER.items():
            code = re.sub(longer, shorter, code)
        try:
            exec(compile(code, name_of(page), "exec"), namespace)
        except ImportError as error:  # an extra that is not installed; its message has the install line
            assert "pip install" in str(error)
            pytest.skip(str(error))


@each(TEXTS, commands)
def test_every_command_is_of_a_kind_that_is_checked(page):
    known = ("make ", "python ", "pip install ", "tensorboard --logdir ", "sudo apt-get install ", "apt-get install ")
    assert [line for line in commands(page) if not line.startswith(known)] == []


@pytest.mark.parametrize("command", sorted({c for page in TEXTS for c in commands(page) if c.startswith("make ")}))
def test_make_target_exists(command):
    subprocess.run([*shlex.split(command), "--dry-run"], cwd=ROOT, check=True, capture_output=True)


class Parsed(BaseException):
    """A command read its flags."""


@each(TEXTS)
def test_flags_of_every_command_on_a_page_are_known(page, monkeypatch):
    original = tyro.cli

    def read_and_stop(*args, **kwargs):
        original(*args, **kwargs)
        raise Parsed

    monkeypatch.setattr(tyro, "cli", read_and_stop)
    text = TEXTS[page].replace("\\\n", " ")
    for script, flags in re.findall(r"python experiments/(\w+)\.py([^`#\n]*)", text):
        if script == "model_table":  # takes none
            assert not flags.strip()
            continue
        with pytest.raises(Parsed):
            importlib.import_module(f"experiments.{script}").main(shlex.split(flags))


@each(TEXTS)
def test_every_picture_and_every_link_leads_somewhere(page):
    prose = re.sub(r"^```.*?^```", "", TEXTS[page], flags=re.MULTILINE | re.DOTALL)
    targets = re.findall(r"\]\((?!https?:|#)([^)#\s]+)", prose)
    assert [target for target in targets if not (page.parent / target).exists()] == []


@each(TEXTS)
def test_every_link_to_a_section_names_one(page):
    for target, anchor in re.findall(r"\]\(([\w./]*\.md)?#([^)\s]+)\)", TEXTS[page]):
        there = (page.parent / target).resolve() if target else page
        headings = re.findall(r"^#+ (.*)$", there.read_text(encoding="utf-8"), flags=re.MULTILINE)
        assert anchor in {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize(
    "report", sorted((ROOT / "experiments" / "results").glob("race_atari*.md")), ids=lambda path: path.stem
)
def test_tables_of_races_are_those_of_their_reports(report):
    table = [line for line in report.read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    assert "\n".join(table) in TEXTS[ROOT / "docs" / "results.md"], f"copy the table from {report}"


def test_table_of_models_is_the_registry():
    page = TEXTS[ROOT / "docs" / "models.md"]
    assert model_table.with_table(page) == page, "run python experiments/model_table.py"


def test_readme_is_read_in_two_minutes():
    assert len(TEXTS[README].split()) <= 900


@each(TRANSLATIONS)
def test_a_translation_has_the_code_links_and_numbers_of_the_english_readme(page):
    def facts(text):
        code = re.findall(r"^```.*?^```", re.sub(r"#.*$", "", text, flags=re.MULTILINE), re.MULTILINE | re.DOTALL)
        links = re.findall(r"\]\(([^)]+)\)", text)
        numbers = re.findall(r"\d+(?:[.,]\d+)*", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL))
        return [re.sub(r"[ \t]+$", "", block, flags=re.MULTILINE) for block in code], set(links), sorted(numbers)

    own_links, english_links = facts(TEXTS[page])[1], facts(TEXTS[README])[1]
    assert facts(TEXTS[page])[0] == facts(TEXTS[README])[0]
    # Each names the other languages.
    assert own_links - {"README.md"} == english_links - {page.name}
    assert facts(TEXTS[page])[2] == facts(TEXTS[README])[2]


def public_functions():
    """(path:name, node, docstring of it and of its class) of everything public in the library."""
    for path in sorted((ROOT / "mnv4_rl").rglob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            owners = [(node, "")] if isinstance(node, ast.FunctionDef) else []
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                about = ast.get_docstring(node) or ""
                # forward of an autograd function is PyTorch's contract, not ours
                is_function = any("Function" in ast.dump(base) for base in node.bases)
                owners = [
                    (child, about) for child in node.body if isinstance(child, ast.FunctionDef) and not is_function
                ]
            for function, about in owners:
                if not function.name.startswith("_") or function.name == "__init__":
                    doc = about + (ast.get_docstring(function) or "")
                    yield f"{path.relative_to(ROOT)}:{function.name}", function, doc


def test_docstrings_name_the_errors_that_are_raised():
    def raises(function):
        raised = (node.exc for node in ast.walk(function) if isinstance(node, ast.Raise))
        return any(exc is not None and "NotImplemented" not in ast.dump(exc) for exc in raised)

    assert [name for name, function, doc in public_functions() if raises(function) and "Raises:" not in doc] == []


def test_docstrings_give_the_shapes_of_tensors():
    def takes_tensors(function):
        hints = [arg.annotation for arg in function.args.args if arg.annotation is not None]
        return any(isinstance(hint, ast.Name) and hint.id == "Tensor" for hint in hints)

    shapes = re.compile(r"\([A-Za-z_]\w*, |Shape:|shape|any tensor", re.IGNORECASE)
    assert [
        name for name, function, doc in public_functions() if takes_tensors(function) and not shapes.search(doc)
    ] == []


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path):
    build = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-c", "docs", "-b", "html", ".", str(tmp_path)]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    pages = list(tmp_path.rglob("*.html"))
    assert {tmp_path / "index.html", tmp_path / "docs" / "index.html", tmp_path / "docs" / "api.html"} <= set(pages)
    remote = {
        url for page in pages for url in re.findall(r'(?:src|<link[^>]*href)="(https?://[^"]+)"', page.read_text())
    }
    assert remote == set(), "a page needs the network"
