"""Hyperparameters for rl-zoo3, with our policies: ``-conf mnv4_rl.zoo.ppo``; see docs/zoo.md."""
