"""Encoders against each other on games: runs, their CSVs, estimates and figures."""
