"""rl-zoo's Atari settings of PPO with our policy: ``-conf mnv4_rl.zoo.ppo``. Source: its hyperparams/ppo.yml."""

hyperparams = {
    "atari": {
        "env_wrapper": ["stable_baselines3.common.atari_wrappers.AtariWrapper"],
        "frame_stack": 4,
        "policy": "mnv4_rl.policies.MNV4Policy",
        "n_envs": 8,
        "n_steps": 128,
        "n_epochs": 4,
        "batch_size": 256,
        "n_timesteps": 1e7,
        "learning_rate": "lin_2.5e-4",
        "clip_range": "lin_0.1",
        "vf_coef": 0.5,
        "ent_coef": 0.01,
    }
}
