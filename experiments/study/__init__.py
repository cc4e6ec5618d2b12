"""The networks and starts that were tried for RL."""
