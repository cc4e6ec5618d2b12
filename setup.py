"""README as a package index shows it: away from the repository, where a relative link leads nowhere.

``MNV4_RL_REPOSITORY=https://... python -m build`` makes the links absolute and names the project's pages. Without it
they become plain text, and pictures their captions.
"""

import os
import re
from pathlib import Path

from setuptools import setup

RELATIVE_LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!https?:|#)([^)]+)\)")
PAGES = {"Source": "", "Documentation": "/blob/main/docs/index.md", "Changelog": "/blob/main/CHANGELOG.md"}


def for_an_index(text: str, repository: str) -> str:
    """Markdown with its relative links made absolute, or without them where no repository is named."""

    def link(match: re.Match[str]) -> str:
        mark, label, target = match.groups()
        if not repository:
            return label
        return f"{mark}[{label}]({repository}/{'raw' if mark else 'blob'}/main/{target})"

    return RELATIVE_LINK.sub(link, text)


if __name__ == "__main__":
    place = os.environ.get("MNV4_RL_REPOSITORY", "").rstrip("/")
    readme = (Path(__file__).parent / "README.md").read_text(encoding="utf-8")
    setup(
        long_description=for_an_index(readme, place),
        long_description_content_type="text/markdown",
        project_urls={name: place + page for name, page in PAGES.items()} if place else {},
    )
