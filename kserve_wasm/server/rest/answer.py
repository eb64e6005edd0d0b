"""An answer on its way out, before anything of HTTP's framing."""

from __future__ import annotations

from dataclasses import dataclass, field

from kserve_wasm.tensors.tensor import BytesLike

JSON_TYPE = (b"content-type", b"application/json")
BINARY_TYPE = (b"content-type", b"application/octet-stream")


@dataclass(slots=True)
class Answer:
    """A status, headers without Content-Length, and a body in parts.

    Attributes:
        status: the HTTP status code.
        headers: names in lower case.
        body: parts that are sent one after the other; tensors' memory, not copies of it.
        close: whether the connection must end, because the request was not read to its end.
    """

    status: int
    headers: list[tuple[bytes, bytes]]
    body: list[BytesLike] = field(default_factory=list)
    close: bool = False

    @property
    def nbytes(self) -> int:
        """Bytes of the body."""
        return sum(len(part) for part in self.body)
