"""Pong on RLlib's PPO with our encoder, on as many learners and env runners as there are; the agent is one of ours.

python examples/rllib_pong.py --env-runners 6 --learners 2
python examples/rllib_pong.py --address auto --env-runners 60 --learners 4 --gpus-per-learner 1

The agent's folder is one of ``save_agent``: ``load_agent`` gives an SB3 agent. docs/scale.md says how RLlib is
installed, in an environment of its own.
"""

from __future__ import annotations

import sys
from argparse import ArgumentParser
from importlib.util import find_spec
from pathlib import Path

if find_spec("ray") is None:
    sys.exit(
        'error: RLlib is missing; in an environment of its own: pip install -c constraints-rllib.txt -e ".[rllib]"'
    )

import ray
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.ppo import PPOConfig

from mnv4_rl import save_agent
from mnv4_rl.agent_files import check_agent_place
from mnv4_rl.models.registry import DEFAULT_VARIANT
from mnv4_rl.rllib import rl_module, to_agent

# For ALE's own vector environment: pictures (4, 84, 84) uint8. Its `episodic_life` is not SB3's: it would begin a new
# game at every lost life.
ATARI = {"repeat_action_probability": 0.0, "reward_clipping": True}
PPO = {  # rl-zoo's values, as agents.ppo.PRESETS has them
    "lr": 2.5e-4,
    "gamma": 0.99,
    "lambda_": 0.95,
    "clip_param": 0.1,
    "vf_clip_param": float("inf"),
    "vf_loss_coeff": 0.5,
    "entropy_coeff": 0.01,
    "grad_clip": 0.5,
    "use_kl_loss": False,
    "num_epochs": 4,
    "minibatch_size": 256,
    "train_batch_size_per_learner": 1024,
}


def configure(
    game: str, encoder: str, env_runners: int, envs: int, learners: int, gpus_per_learner: float
) -> PPOConfig:
    """RLlib's config; a killed env runner is started again."""
    return (
        PPOConfig()
        .environment(f"ale_py:{game}", env_config=ATARI)  # every process imports ALE
        .env_runners(
            num_env_runners=env_runners,
            num_envs_per_env_runner=envs,
            gym_env_vectorize_mode="vector_entry_point",
        )
        .learners(num_learners=learners, num_gpus_per_learner=gpus_per_learner)
        .fault_tolerance(restart_failed_env_runners=True)
        .training(**PPO)
        .rl_module(rl_module_spec=rl_module(encoder))
    )


def train(algorithm: Algorithm, total_timesteps: int) -> None:
    """Train, and print a line an iteration."""
    timesteps = 0
    while timesteps < total_timesteps:
        result = algorithm.train()
        timesteps = int(result["num_env_steps_sampled_lifetime"])
        score = result["env_runners"].get("episode_return_mean", float("nan"))
        print(f"{timesteps:>9,} timesteps, return {score:.1f}", flush=True)


def main(args: list[str] | None = None) -> None:
    """Train until the end or Ctrl-C, and save the agent."""
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--game", default="ALE/Pong-v5", help="a game of ALE")
    parser.add_argument("--encoder", default=DEFAULT_VARIANT, help="a name of mnv4_rl.list_models()")
    parser.add_argument("--total-timesteps", type=int, default=1_000_000, help="agent timesteps in all")
    parser.add_argument("--env-runners", type=int, default=2, help="processes that play")
    parser.add_argument("--envs", type=int, default=4, help="games played side by side in each")
    parser.add_argument("--learners", type=int, default=1, help="processes that learn")
    parser.add_argument("--gpus-per-learner", type=float, default=0, help="GPUs of each, or a share of one")
    parser.add_argument("--address", default="local", help="a Ray cluster that exists; by default one on this machine")
    parser.add_argument("--agent", type=Path, default=Path("rllib_pong"), help="folder for the agent")
    flags = parser.parse_args(args)
    check_agent_place(flags.agent)  # before hours of training, not after
    ray.init(address=flags.address, include_dashboard=False if flags.address == "local" else None)
    config = configure(flags.game, flags.encoder, flags.env_runners, flags.envs, flags.learners, flags.gpus_per_learner)
    algorithm = config.build_algo()
    try:
        train(algorithm, flags.total_timesteps)
    except KeyboardInterrupt:
        print("interrupted: what was learnt so far is saved", flush=True)
    print(f"agent in {save_agent(to_agent(algorithm), flags.agent, optimizer=False)}")
    algorithm.stop()
    ray.shutdown()


if __name__ == "__main__":
    main()
