"""Train an image classifier: any registered model on real images.

python experiments/classify.py --model mobilenet_v4_nano --data digits
"""

from __future__ import annotations

import sys
from pathlib import Path

if __package__ in (None, ""):  # run as a script: the checkout's packages are one folder up
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from agents.runs.config import check_device
from experiments.classification.config import ClassifyConfig
from experiments.classification.report import add_result, read_results, write_test
from experiments.classification.run import ClassificationRun
from experiments.classification.session import heading, interrupted, result_row, resume, start, summary
from experiments.cli.command import INTERRUPTED_CODE, USER_ERROR_CODE, parse, sigterm_as_interrupt, user_errors
from experiments.cli.results import shown
from mnv4_rl.performance import tune


def main(args: list[str] | None = None) -> None:
    """Parse flags, train, look at the test images once, and say where everything is."""
    config = parse(ClassifyConfig, args)
    with user_errors():
        check_device(config.device)
        if config.result_file:
            read_results(config.result_file)
        tune(config.threads)
        config, run = resume(config, config.resume) if config.resume else start(config)
    with run.folder:
        print(heading(config, run))
        _train(run)
        _test(config, run)


def _test(config: ClassifyConfig, run: ClassificationRun) -> None:
    """Look at the test images, and write down what was seen."""
    evaluation = run.test()
    dataset = run.trainer.dataset
    title = (
        f"{config.model} on {dataset.name}: {100 * evaluation.accuracy:.1f} % of {len(evaluation.labels):,} test images"
    )
    write_test(run.path, evaluation, dataset.class_names, title)
    if config.result_file:
        add_result(config.result_file, result_row(config, run, evaluation), run.path / "confusion.png")
    print(summary(run, evaluation))


def _train(run: ClassificationRun) -> None:
    """Train to the end; leave with a line that says why and what is saved if that is not reached."""
    try:
        with sigterm_as_interrupt():
            run.train()
    except KeyboardInterrupt:
        print(interrupted(run))
        sys.exit(INTERRUPTED_CODE)
    except FloatingPointError as error:
        print(f"error: {error} What was saved is in {shown(run.path)}.", file=sys.stderr)
        sys.exit(USER_ERROR_CODE)


if __name__ == "__main__":
    main()
