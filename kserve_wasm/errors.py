"""Every error of this project, one tree.

    WasmServingError                    500  INTERNAL
    ├── InvalidRequest                  400  INVALID_ARGUMENT    the client's tensors or parameters are wrong
    │   └── PayloadTooLarge             413  RESOURCE_EXHAUSTED  a request above the configured size
    ├── ModelNotFound                   404  NOT_FOUND           no such model or version
    ├── ModelNotReady                   503  UNAVAILABLE         known, but not loaded (yet, or any more)
    ├── NotSupported                    501  UNIMPLEMENTED
    ├── QueueFull                       429  RESOURCE_EXHAUSTED  carries Retry-After
    ├── GuestRejected                   422  INVALID_ARGUMENT    the guest refused the input, in its own words
    ├── GuestError                      500  INTERNAL            the guest failed
    │   ├── GuestTrap                   500  INTERNAL            … by a WebAssembly trap
    │   └── GuestLimitExceeded          500  INTERNAL            … by passing a limit of its sandbox
    ├── DeadlineExceeded                504  DEADLINE_EXCEEDED
    ├── RequestCancelled                499  CANCELLED           the client went away; nobody sees it
    ├── BackendError                    500  INTERNAL            the framework failed to run a graph
    │   └── DeviceUnavailable           503  UNAVAILABLE         asked for a GPU, none there, no fall-back allowed
    └── ModelLoadError                  500  FAILED_PRECONDITION the model directory cannot be served
        └── ArtifactError               500  FAILED_PRECONDITION … because the ``.wasm`` file is not what it should be

The classes carry the status themselves and do not derive from KServe's: importing ``kserve`` costs about two
seconds, which the command line and scheduler workers must not pay. :mod:`kserve_wasm.server` answers with these
statuses for every route, the SDK's own included.

A message says what was expected, what came and what to try. It must be safe to show to the client: no host path,
no traceback, no data of another request.
"""

from __future__ import annotations

from typing import ClassVar


class WasmServingError(Exception):
    """Base of all errors here.

    Attributes:
        http_status: the HTTP status code of the answer.
        grpc_code: the name of the gRPC status code, as in ``grpc.StatusCode``.
    """

    http_status: ClassVar[int] = 500
    grpc_code: ClassVar[str] = "INTERNAL"


class InvalidRequest(WasmServingError):
    """The client's tensors or parameters are wrong."""

    http_status = 400
    grpc_code = "INVALID_ARGUMENT"


class PayloadTooLarge(InvalidRequest):
    """The request is larger than the server accepts."""

    http_status = 413
    grpc_code = "RESOURCE_EXHAUSTED"


class ModelNotFound(WasmServingError):
    """No model, or no version of it, has this name."""

    http_status = 404
    grpc_code = "NOT_FOUND"


class ModelNotReady(WasmServingError):
    """The model is known but cannot answer now."""

    http_status = 503
    grpc_code = "UNAVAILABLE"


class NotSupported(WasmServingError):
    """The request is valid, and this server does not do it."""

    http_status = 501
    grpc_code = "UNIMPLEMENTED"


class QueueFull(WasmServingError):
    """Too many requests wait already.

    Attributes:
        retry_after: seconds after which to try again (HTTP header ``Retry-After``).
    """

    http_status = 429
    grpc_code = "RESOURCE_EXHAUSTED"

    def __init__(self, message: str, retry_after: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class GuestRejected(WasmServingError):
    """The guest refused the input and said why."""

    http_status = 422
    grpc_code = "INVALID_ARGUMENT"


class GuestError(WasmServingError):
    """The guest failed."""


class GuestTrap(GuestError):
    """The guest ended with a WebAssembly trap.

    Attributes:
        code: the trap's name in lower case, for metrics.
    """

    def __init__(self, message: str, code: str = "host") -> None:
        super().__init__(message)
        self.code = code


class GuestLimitExceeded(GuestError):
    """The guest passed a limit of its sandbox."""


class DeadlineExceeded(WasmServingError):
    """The request's deadline passed."""

    http_status = 504
    grpc_code = "DEADLINE_EXCEEDED"


class RequestCancelled(WasmServingError):
    """The client went away before its answer was there."""

    http_status = 499
    grpc_code = "CANCELLED"


class BackendError(WasmServingError):
    """A framework failed to open or run a graph."""


class DeviceUnavailable(BackendError):
    """The configured device is not there and no fall-back is allowed."""

    http_status = 503
    grpc_code = "UNAVAILABLE"


class ModelLoadError(WasmServingError):
    """The model directory cannot be served: not a status that clients retry on, before someone mends it."""

    http_status = 500
    grpc_code = "FAILED_PRECONDITION"


class ArtifactError(ModelLoadError):
    """The ``.wasm`` file is damaged or not a kserve_wasm model."""


def printable(text: str) -> str:
    """``text`` with control characters escaped, as it goes to the log: nobody's words may forge lines of it."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
