"""The KServe runtime for WebAssembly models.

The packages follow the way of a request, each importing only those after it:
``server`` → ``model`` → ``guest`` → ``wasi_nn`` → ``batching`` → ``backends`` → ``artifact`` → ``tensors``.
"""

__version__ = "0.1.0"
