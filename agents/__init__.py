"""Ready-made agents: features -> actions. Thin, typed glue around stable-baselines3."""

from importlib.util import find_spec as _find_spec

INSTALL_LINE = "python -m pip install -c constraints.txt -e . -r requirements.txt"

_MODULES = ("tyro", "tqdm", "rich", "matplotlib", "yaml", "psutil", "scipy", "PIL")
_missing = ", ".join(name for name in _MODULES if _find_spec(name) is None)
if _missing:
    raise ModuleNotFoundError(
        f"agents and experiments need requirements.txt ({_missing} not found); install it with: {INSTALL_LINE}"
    )
