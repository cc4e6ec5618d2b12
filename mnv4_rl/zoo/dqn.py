"""rl-zoo's Atari settings of DQN with our policy: ``-conf mnv4_rl.zoo.dqn``. Source: its hyperparams/dqn.yml."""

hyperparams = {
    "atari": {
        "env_wrapper": ["stable_baselines3.common.atari_wrappers.AtariWrapper"],
        "frame_stack": 4,
        "policy": "mnv4_rl.policies.MNV4DQNPolicy",
        "n_timesteps": 1e7,
        "buffer_size": 100_000,
        "learning_rate": 1e-4,
        "batch_size": 32,
        "learning_starts": 100_000,
        "target_update_interval": 1_000,
        "train_freq": 4,
        "gradient_steps": 1,
        "exploration_fraction": 0.1,
        "exploration_final_eps": 0.01,
        "optimize_memory_usage": False,
    }
}
