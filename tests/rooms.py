"""The rooms of the project and the imports between them; ``make rooms`` (``python -m tests.rooms``) draws them.

A room is a folder of modules. The library's basics are one room of their own: modules beside its face that import
nothing of ours but each other, so that all may import them.
"""

import ast
import textwrap
from collections import defaultdict
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("experiments", "agents", "mnv4_rl")  # from those that import to those that are imported
MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
BASICS = "mnv4_rl: basics"
PICTURE = ROOT / "docs" / "rooms.svg"
COLOURS = {"experiments": "#fde8c8", "agents": "#d9ead3", "mnv4_rl": "#d0e2f2"}
WIDTH, BOX, LINE = 14.0, 3.9, 0.33  # of the picture, of a room, of a line of text
INCHES = 0.6  # of a row's height, so that lines of text fit
LETTERS = 42  # that fit into a room


def module_name(path: Path) -> str:
    """What a file is imported as."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


NAMES = {module_name(path): path for path in MODULES}


@cache
def imported_modules(path: Path) -> set[str]:
    """Modules of ours that a file imports anywhere, also inside its functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= (inner & NAMES.keys()) or {node.module}
    return found & NAMES.keys()


@cache
def basics() -> set[str]:
    """Modules at the top of the library that import nothing of ours but each other."""
    found = {name for name, path in NAMES.items() if path.parent == ROOT / "mnv4_rl"}
    while outside := {name for name in found if not imported_modules(NAMES[name]) <= found}:
        found -= outside
    return found


@cache
def room_of(name: str) -> str:
    """The room that a module is in."""
    return BASICS if name in basics() else str(NAMES[name].relative_to(ROOT).parent)


def package_of(room: str) -> str:
    """The package that a room belongs to."""
    return room.partition("/")[0].partition(":")[0]


def modules_of(room: str) -> list[str]:
    """Names of a room's modules."""
    named = (name for name, path in NAMES.items() if path.name != "__init__.py" and room_of(name) == room)
    return sorted(name.rpartition(".")[2] for name in named)


def arrows() -> dict[str, set[str]]:
    """Room -> the rooms that its modules import."""
    found: dict[str, set[str]] = defaultdict(set)
    for name, path in NAMES.items():
        found[room_of(name)] |= {room_of(other) for other in imported_modules(path)} - {room_of(name)}
    return dict(found)


def cycle() -> list[str]:
    """Rooms that import each other in a circle, none if there is no such circle."""
    try:
        TopologicalSorter(arrows()).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def witnesses(importing: str, imported: str) -> list[str]:
    """The modules behind an arrow, for a message."""
    return [
        f"{name} -> {other}"
        for name, path in NAMES.items()
        if room_of(name) == importing
        for other in imported_modules(path)
        if room_of(other) == imported
    ]


def drawn(found: dict[str, set[str]]) -> list[tuple[str, str]]:
    """The arrows without those that follow from others, so that a picture of them can be read."""
    below = {room: set(rooms) for room, rooms in found.items()}
    for room in TopologicalSorter(found).static_order():  # what a room imports comes before it
        below[room] |= {further for other in found[room] for further in below[other]}
    return [
        (room, other)
        for room, rooms in sorted(found.items())
        for other in sorted(rooms)
        if not any(other in below[between] for between in rooms - {other})
    ]


def rows(found: dict[str, set[str]]) -> list[list[str]]:
    """Rooms from top to bottom: a package after the other, and each above those it imports."""
    depth: dict[tuple[int, int], list[str]] = defaultdict(list)
    level: dict[str, int] = {}
    for room in [*TopologicalSorter(found).static_order()][::-1]:
        package = package_of(room)
        above = [level[other] for other, rooms in found.items() if room in rooms and package_of(other) == package]
        level[room] = max(above, default=-1) + 1
        depth[PACKAGES.index(package), level[room]].append(room)
    return [sorted(depth[key]) for key in sorted(depth)]


def place(row: list[str], places: dict[str, tuple[float, float, float]], found: dict[str, set[str]]) -> list[float]:
    """Where the middles of a row's rooms are: side by side, a single one below those that import it."""
    if len(row) > 1:
        return [(index + 0.5) * WIDTH / len(row) for index in range(len(row))]
    above = [places[room][0] for room, other in drawn(found) if other == row[0]]
    return [sum(above) / len(above) if above else WIDTH / 2]


def draw(path: Path) -> None:
    """Draw the rooms with their modules, and the arrows between them."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    matplotlib.rcParams.update({"svg.hashsalt": "rooms", "svg.fonttype": "none"})
    found, places, y = arrows(), {}, 0.0
    texts = {room: textwrap.wrap("  ".join(modules_of(room)), LETTERS) or [""] for room in found}
    figure, axis = plt.subplots()
    for row in rows(found):
        height = 0.7 + LINE * max(len(texts[room]) for room in row)
        for room, x in zip(row, place(row, places, found), strict=True):
            places[room] = x, y, height
            colour = COLOURS[package_of(room)]
            axis.add_patch(plt.Rectangle((x - BOX / 2, y), BOX, height, facecolor=colour, edgecolor="black", gid=room))
            axis.text(x, y + 0.3, room, weight="bold", ha="center", va="center", fontsize=11)
            axis.text(x, y + 0.52, "\n".join(texts[room]), ha="center", va="top", fontsize=9)
        y += height + 0.8
    for room, other in drawn(found):
        (x0, y0, height), (x1, y1, _) = places[room], places[other]
        look = {"arrowstyle": "-|>", "color": "#444444", "shrinkA": 0, "shrinkB": 0}
        axis.annotate("", (x1, y1), (x0, y0 + height), arrowprops=look, zorder=0)
    axis.set(xlim=(0, WIDTH), ylim=(y, -0.1))
    axis.axis("off")
    figure.set_size_inches(WIDTH, INCHES * y)
    figure.savefig(path, bbox_inches="tight", metadata={"Date": None} if path.suffix == ".svg" else None)
    plt.close(figure)


if __name__ == "__main__":
    draw(PICTURE)
    print(PICTURE.relative_to(ROOT))
