"""The package version, in the one place that setup.cfg and saved files read."""

__version__ = "0.2.0"
