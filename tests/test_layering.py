"""Imports go one way, stay few, and the wheel holds the library alone."""

import ast
import configparser
import email
import json
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from mnv4_rl import __version__
from tests import rooms

ROOT = Path(__file__).resolve().parents[1]
# What each package may import of the three: experiments -> agents -> mnv4_rl.
ALLOWED = {
    "mnv4_rl": {"mnv4_rl"},
    "agents": {"agents", "mnv4_rl"},
    "experiments": {"experiments", "agents", "mnv4_rl"},
}
OPTIONAL = {"sb3_contrib", "tyro", "matplotlib", "tqdm", "rich", "yaml", "cv2", "psutil", "scipy"}
MODULES = [path for package in ALLOWED for path in sorted((ROOT / package).rglob("*.py"))]


def python(code):
    """Standard output of ``code`` in a fresh interpreter at the root of the checkout."""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def imported_packages(path):
    """Top-level packages that a file imports anywhere, also inside its functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield path.relative_to(ROOT).parts[0] if node.level else node.module.partition(".")[0]


def test_imports_of_packages_go_one_way():
    for path in MODULES:
        ours = {*ALLOWED, "tests"} & set(imported_packages(path))
        assert ours <= ALLOWED[path.relative_to(ROOT).parts[0]], path


def test_imports_of_rooms_go_one_way():
    circle = rooms.cycle()
    behind = [rooms.witnesses(a, b) or rooms.witnesses(b, a) for a, b in pairwise(circle)]
    assert not circle, behind


def test_rooms_of_the_commands_import_no_command():
    """A command is what a person runs; what commands share is in a room."""
    commands = {name for name in rooms.NAMES if rooms.room_of(name) == "experiments"} - {"experiments"}
    importing = {name: rooms.imported_modules(path) & commands for name, path in rooms.NAMES.items()}
    assert not {name: found for name, found in importing.items() if found and name not in commands}


def test_the_picture_shows_every_room():
    drawn = set(re.findall(r'<g id="([^"]+)"', rooms.PICTURE.read_text()))
    assert rooms.arrows().keys() <= drawn, "run make rooms"


@pytest.mark.parametrize("module", ["models.specs", "models.registry"])
def test_the_tables_import_neither_torch_nor_numpy(module):
    """The packages' ``__init__`` do import torch, so empty ones take their place here."""
    loaded = python(
        "import sys, types\n"
        "for name in ('mnv4_rl', 'mnv4_rl.models'):\n"
        "    package = sys.modules[name] = types.ModuleType(name); package.__path__ = [name.replace('.', '/')]\n"
        f"import mnv4_rl.{module}\n"
        "print(*sys.modules)"
    ).split()
    assert f"mnv4_rl.{module}" in loaded
    assert not {"torch", "numpy", "gymnasium", "stable_baselines3"} & set(loaded)


def test_importing_the_library_imports_no_optional_package_and_tunes_nothing():
    """SB3 itself pulls in some of them where they are installed; the library adds none."""
    added = json.loads(
        python(
            "import ctypes, json, sys\n"
            "import stable_baselines3, torch\n"
            "before, threads = set(sys.modules), torch.get_num_threads()\n"
            "def refuse(*args): raise AssertionError('import touched the C library')\n"
            "ctypes.CDLL = refuse\n"
            "import mnv4_rl, mnv4_rl.performance, mnv4_rl.policies\n"
            "assert torch.get_num_threads() == threads\n"
            "print(json.dumps(sorted({name.partition('.')[0] for name in set(sys.modules) - before})))"
        )
    )
    assert "mnv4_rl" in added
    assert not OPTIONAL & set(added)


def build(kind, folder):
    """Build a ``wheel`` or an ``sdist`` of a copy of the checkout."""
    source = folder / "source"
    skipped = shutil.ignore_patterns(".*", "runs", "results", "build", "dist", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, source, ignore=skipped)
    code = f"from setuptools import build_meta; build_meta.build_{kind}({str(folder)!r})"
    done = subprocess.run([sys.executable, "-c", code], cwd=source, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module", params=["", "https://example.org/mnv4_rl"])
def wheel(request, tmp_path_factory):
    """The repository that a wheel was built for, and the wheel, open."""
    folder = tmp_path_factory.mktemp("wheel")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MNV4_RL_REPOSITORY", request.param)
        build("wheel", folder)
    with zipfile.ZipFile(*folder.glob("*.whl")) as archive:
        yield request.param, archive


def test_the_wheel_holds_the_library_alone_and_its_type_marker(wheel):
    names = wheel[1].namelist()
    assert {name.partition("/")[0] for name in names if ".dist-info/" not in name} == {"mnv4_rl"}
    assert "mnv4_rl/py.typed" in names
    assert {name for name in names if name.endswith(".py")} == {
        str(path.relative_to(ROOT)) for path in (ROOT / "mnv4_rl").rglob("*.py")
    }


RELATIVE = re.compile(r"\]\((?!https?:|#)")


def test_no_link_of_the_readme_on_a_package_index_is_relative(wheel):
    repository, archive = wheel
    (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
    metadata = email.message_from_bytes(archive.read(name))
    readme = (ROOT / "README.md").read_text()
    text = metadata.get_payload()
    assert RELATIVE.search(readme) and not RELATIVE.search(text)
    assert metadata["Description-Content-Type"] == "text/markdown" and "# mnv4_rl" in text
    assert (
        ("/blob/main/docs/index.md" in text) is ("(https://example.org/mnv4_rl/raw/main/" in text) is bool(repository)
    )
    assert len(metadata.get_all("Project-URL", [])) == (3 if repository else 0)
    assert text.count("```") == readme.count("```") and text.count("\n") == readme.count("\n")


def test_the_source_distribution_holds_the_whole_library_and_no_part_of_the_rest(tmp_path):
    build("sdist", tmp_path)
    (sdist,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {str(path.relative_to(ROOT)) for path in (ROOT / "mnv4_rl").rglob("*.py")} <= names
    assert {
        "LICENSE",
        "README.md",
        "CHANGELOG.md",
        "constraints.txt",
        "setup.cfg",
        "setup.py",
        "pyproject.toml",
    } <= names
    assert not {"tests", "agents", "experiments", "examples"} & {name.partition("/")[0] for name in names}


def test_the_version_is_the_same_everywhere():
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == __version__
    assert f"\n## {__version__} - " in (ROOT / "CHANGELOG.md").read_text()


def test_extras_name_what_the_library_uses():
    text = "\n".join(path.read_text() for path in (ROOT / "mnv4_rl").rglob("*.py"))
    words = set(re.findall(r"\w+", text))
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    extras = parser["options.extras_require"].values()
    packages = {re.split(r"[\[<>=]", line)[0].replace("-", "_") for extra in extras for line in extra.split()}
    assert packages <= words
