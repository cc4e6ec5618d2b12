"""Commands: config -> run folder -> reports."""
