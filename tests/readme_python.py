"""Print README's Python with a tiny budget, for an environment that holds the wheel alone."""

import re
from pathlib import Path

TEXT = (Path(__file__).resolve().parents[1] / "README.md").read_text(encoding="utf-8")
CODE = "".join(re.findall(r"^```python\n(.*?)^```", TEXT, flags=re.MULTILINE | re.DOTALL))
print(re.sub(r"total_timesteps=[\d_]+", "total_timesteps=8", CODE))
