"""WebNN's operators for guests: built of handles, lowered to ONNX, and run where the tensors are.

The vocabulary is that of the W3C Web Neural Network API (Candidate Recommendation); the interface that guests call is
this project's own.
"""

from kserve_wasm.webnn.builder import Builder, Recordings
from kserve_wasm.webnn.operand import Operand, OperatorError
from kserve_wasm.webnn.program import Program

__all__ = ["Builder", "Operand", "OperatorError", "Program", "Recordings"]
