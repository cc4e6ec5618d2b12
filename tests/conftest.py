"""What every test can rely on."""

import signal

import pytest


@pytest.fixture(autouse=True, scope="session")
def _ctrl_c_interrupts():
    """A shell that starts the tests in the background ignores Ctrl-C, and what it starts would inherit that."""
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, previous)
