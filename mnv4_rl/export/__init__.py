"""Take an agent elsewhere: folded into plain layers, and as a file for ONNX Runtime. Files need the extra ``export``,
ExecuTorch's ``executorch``.

from mnv4_rl.export import to_onnx

print(to_onnx(agent, "agent.onnx"))
"""

from mnv4_rl.export.acting import FoldedAgent, fold
from mnv4_rl.export.agreement import Exported
from mnv4_rl.export.executorch_file import to_executorch
from mnv4_rl.export.onnx_agent import OnnxAgent
from mnv4_rl.export.onnx_file import to_onnx

__all__ = ["Exported", "FoldedAgent", "OnnxAgent", "fold", "to_executorch", "to_onnx"]
