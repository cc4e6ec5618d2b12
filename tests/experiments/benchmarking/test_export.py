"""The part export: every way to act is timed for every encoder, in the same rounds, and is the agent's way."""

import numpy as np
import pytest

from experiments import benchmark
from experiments.benchmarking import export
from experiments.benchmarking.encoders import REFERENCE, Limits, random_images
from mnv4_rl.models.registry import DEFAULT_VARIANT

ENCODERS = (REFERENCE, DEFAULT_VARIANT)


@pytest.mark.slow
def test_command_writes_every_set_up_at_both_batches(tmp_path, capsys):
    flags = [
        "--parts",
        "export",
        "--rounds",
        "2",
        "--min-seconds",
        "0",
        "--name",
        "mine",
        "--results-dir",
        str(tmp_path),
    ]
    benchmark.main(flags)
    assert {path.suffix for path in tmp_path.iterdir()} == {".csv", ".md", ".png"}
    table = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    for encoder in ENCODERS:
        for way in ("SB3's predict", "PyTorch, folded", "ONNX Runtime", "ONNX Runtime, int8 fc"):
            for batch in export.BATCHES:
                assert sum(line.startswith(f"| {way}, {encoder} | act | cpu | fp32 | {batch} |") for line in table) == 1
    reference = [line for line in table if line.startswith("| ONNX Runtime, nature ")]
    assert len(reference) == 2 and all("1.00x" in line for line in reference)


def test_a_call_counts_as_many_observations_as_its_batch(monkeypatch):
    monkeypatch.setattr(export, "build_agent", lambda encoder: None)
    monkeypatch.setattr(export, "set_ups", lambda *_: {export.REFERENCE_SET_UP: lambda: None})
    monkeypatch.setattr(export, "calls_per_second", lambda *_: 10.0)
    (row,) = export.measure_export(8, (), Limits(("fp32",), 2, 0.0, 1.0, 1.0), lambda: None)
    assert (row.batch, row.per_second, row.ratio) == (8, 80.0, 1.0)


@pytest.mark.slow
@pytest.mark.parametrize("encoder", ENCODERS)
def test_files_are_the_agents(encoder, tmp_path):
    agent = export.build_agent(encoder)
    images = random_images(8, export.SIZE).numpy()
    ways = export.set_ups(agent, images, tmp_path)
    expected, _ = ways["SB3's predict"]()
    np.testing.assert_array_equal(ways["ONNX Runtime"]()[0], expected)
