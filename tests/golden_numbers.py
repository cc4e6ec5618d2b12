"""Pinned numbers: ``make golden`` (``python -m tests.golden_numbers``) rewrites them; read the diff before committing.

``tests/golden/complexity.json`` holds, for every registered variant, what :func:`mnv4_rl.models.complexity.measure`
says.
"""

import json
import re
from pathlib import Path

import torch as th

from mnv4_rl import create_model
from mnv4_rl.models.complexity import measure
from mnv4_rl.models.registry import get_spec, list_models

COMPLEXITY = Path(__file__).parent / "golden" / "complexity.json"
ATARI_SIZE = 84


def complexity(name: str) -> dict:
    """Parameters, MACs and stage shapes of a variant as it is used: 1000 classes on RGB, or features of 4 frames."""
    spec = get_spec(name)
    in_channels, num_classes = (4, 0) if spec.family == "rl" else (3, 1000)
    with th.device("meta"):  # counting needs shapes only
        model = create_model(name, in_channels, num_classes)
    costs = {size: measure(model, size) for size in sorted({ATARI_SIZE, spec.image_size})}
    return {
        "in_channels": in_channels,
        "num_classes": num_classes,
        "parameters": costs[ATARI_SIZE].parameters,
        "macs": {str(size): cost.macs for size, cost in costs.items()},
        "stage_shapes": {
            str(size): {stage: list(shape) for stage, shape in cost.stage_shapes.items()}
            for size, cost in costs.items()
        },
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
    COMPLEXITY.write_text(to_json({name: complexity(name) for name in list_models()}))
    print(f"Wrote {COMPLEXITY}; review it with git diff.")


if __name__ == "__main__":
    main()
