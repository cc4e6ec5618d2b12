"""Pinned numbers: ``make golden`` (``python -m tests.golden_numbers``) rewrites them; read the diff before committing.

``tests/golden/complexity.json`` holds, for every registered variant, what :func:`mnv4_rl.models.complexity.measure`
says.
"""

import json
import re
from pathlib import Path

from experiments.model_table import ATARI_SIZE, costs, usage
from mnv4_rl.models.registry import list_models
from mnv4_rl.safe_files import write_file

COMPLEXITY = Path(__file__).parent / "golden" / "complexity.json"


def complexity(name: str) -> dict:
    """Parameters, MACs and stage shapes of a variant as it is used."""
    in_channels, num_classes = usage(name)
    found = costs(name)
    shapes = {size: {stage: list(shape) for stage, shape in cost.stage_shapes.items()} for size, cost in found.items()}
    return {
        "in_channels": in_channels,
        "num_classes": num_classes,
        "parameters": found[ATARI_SIZE].parameters,
        "macs": {str(size): cost.macs for size, cost in found.items()},
        "stage_shapes": {str(size): stages for size, stages in shapes.items()},
    }


def to_json(numbers: dict) -> str:
    """One line a shape, so that a diff can be read."""
    one_line = re.sub(
        r"\[[\d,\s]+\]", lambda shape: json.dumps(json.loads(shape.group())), json.dumps(numbers, indent=1)
    )
    return one_line + "\n"


def main() -> None:
    """Rewrite the file."""
    COMPLEXITY.parent.mkdir(exist_ok=True)
    write_file(COMPLEXITY, to_json({name: complexity(name) for name in list_models()}).encode())
    print(f"Wrote {COMPLEXITY}; review it with git diff.")


if __name__ == "__main__":
    main()
