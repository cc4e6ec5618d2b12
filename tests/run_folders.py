"""Run folders for tests, without a training."""

from __future__ import annotations

from pathlib import Path

import yaml


def write_config(folder: Path, **config: object) -> None:
    """What a training command writes first."""
    (folder / "config.yml").write_text(yaml.safe_dump(config))
