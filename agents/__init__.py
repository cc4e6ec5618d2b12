"""Ready-made agents: features -> actions. Thin, typed glue around stable-baselines3."""
