"""What the benchmarks compare with: MLServer's adaptive batching over ONNX Runtime, as its documentation has it.

Usage, in MLServer's own environment: ``python hack/bench/adaptive.py model.onnx --model_name NAME --http_port P
--grpc_port P``. Access logs are off, and the model runs in the server's process: on one CPU, workers would cost more.
"""

from __future__ import annotations

import argparse
import asyncio
import socket

import onnxruntime as ort
from mlserver import MLModel, MLServer, ModelSettings, Settings
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse


class OnnxModel(MLModel):
    async def load(self) -> bool:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = ort.InferenceSession(self.settings.parameters.uri, options)
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        x = self.decode(payload.inputs[0], default_codec=NumpyCodec)
        (y,) = self.session.run(None, {"x": x})
        return InferenceResponse(model_name=self.name, outputs=[NumpyCodec.encode_output("y", y)])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("onnx")
    parser.add_argument("--model_name")
    parser.add_argument("--http_port", type=int)
    parser.add_argument("--grpc_port", type=int)
    args = parser.parse_args()
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        metrics_port = s.getsockname()[1]
    settings = Settings(
        debug=False,
        host="127.0.0.1",
        http_port=args.http_port,
        grpc_port=args.grpc_port,
        metrics_port=metrics_port,
        parallel_workers=0,
    )
    model = ModelSettings(
        name=args.model_name,
        implementation=OnnxModel,
        parameters={"uri": args.onnx},
        max_batch_size=32,
        max_batch_time=0.005,  # seconds
    )
    asyncio.run(MLServer(settings).start([model]))


if __name__ == "__main__":
    main()
