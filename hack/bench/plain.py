"""What the benchmarks compare with: a plain ``kserve.Model`` over ONNX Runtime, as KServe's own examples write one.

Usage: ``python hack/bench/plain.py model.onnx --model_name NAME --http_port P --grpc_port P``
"""

from __future__ import annotations

import sys

import kserve
import onnxruntime as ort
from kserve.utils.utils import generate_uuid


class PlainModel(kserve.Model):
    def __init__(self, name: str, path: str) -> None:
        super().__init__(name)
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = ort.InferenceSession(path, options)
        self.input = self.session.get_inputs()[0].name
        self.output = self.session.get_outputs()[0].name
        self.ready = True

    def predict(self, payload, headers=None):  # noqa: ARG002  (the SDK passes them)
        (answer,) = self.session.run(None, {self.input: payload.inputs[0].as_numpy()})
        output = kserve.InferOutput(self.output, list(answer.shape), "FP32")
        output.set_data_from_numpy(answer, binary_data=payload.from_grpc or bool(payload.request_outputs))
        return kserve.InferResponse(
            payload.id or generate_uuid(),
            self.name,
            [output],
            use_binary_outputs=payload.use_binary_outputs,
            requested_outputs=payload.request_outputs,
        )


if __name__ == "__main__":
    path = sys.argv.pop(1)
    args, _ = kserve.model_server.parser.parse_known_args()
    kserve.ModelServer().start([PlainModel(args.model_name, path)])
