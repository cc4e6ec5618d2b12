"""Play frames in C++: fold and trace an agent, build play_frame.cpp with CMake against the installed PyTorch, run it.

python examples/build_and_run.py experiments/results/agents/pong__ppo__rl_s__s0/agent

Needs this package installed, a C++ compiler and CMake. What was built stays in examples/build.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm

from mnv4_rl import load_agent
from mnv4_rl.export import fold

EXAMPLES = Path(__file__).resolve().parent


def build(folder: Path) -> Path:
    """The compiled program, built in a folder."""
    configure = ["cmake", "-S", str(EXAMPLES), "-B", str(folder), "-DCMAKE_BUILD_TYPE=Release"]
    subprocess.run([*configure, f"-DCMAKE_PREFIX_PATH={th.utils.cmake_prefix_path}"], check=True)
    subprocess.run(["cmake", "--build", str(folder)], check=True)
    return folder / "play_frame"


def play(program: Path, agent: BaseAlgorithm, frames: np.ndarray, folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """What the program answers.

    Args:
        program: What :func:`build` returned.
        agent: An agent with Discrete actions.
        frames: (N, channels, height, width) uint8.
        folder: Where the traced agent and the frames are written.

    Returns:
        Actions (N,), and scores (N, n_actions).
    """
    th.jit.trace(fold(agent), th.as_tensor(frames[:1])).save(str(folder / "agent.pt"))
    frames.tofile(folder / "frames.bin")
    sizes = [str(size) for size in frames.shape[1:]]
    command = [str(program), str(folder / "agent.pt"), str(folder / "frames.bin"), *sizes]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    table = np.array([[float(number) for number in line.split()] for line in done.stdout.splitlines()])
    return table[:, 0].astype(int), table[:, 1:]


def main(path: str) -> None:
    """Build, play ten random frames, and compare with the agent."""
    folder = EXAMPLES / "build"
    program = build(folder)
    agent = load_agent(path, device="cpu")
    frames = np.random.default_rng(0).integers(0, 256, (10, *agent.observation_space.shape), dtype=np.uint8)  # type: ignore[misc]
    actions, _ = play(program, agent, frames, folder)
    expected, _ = agent.predict(frames, deterministic=True)
    print(f"C++ chose {actions.tolist()}, the agent {expected.tolist()}")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
