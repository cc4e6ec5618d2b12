"""Take an agent elsewhere: folded into plain layers, and as a file for ONNX Runtime. Files need the extra ``export``.

from mnv4_rl.export import to_onnx

print(to_onnx(agent, "agent.onnx"))
"""

from mnv4_rl.export.acting import FoldedAgent, fold
from mnv4_rl.export.onnx_agent import OnnxAgent
from mnv4_rl.export.onnx_file import Exported, to_onnx

__all__ = ["Exported", "FoldedAgent", "OnnxAgent", "fold", "to_onnx"]
