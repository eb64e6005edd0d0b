"""Content codings: gzip and deflate, in both directions (RFC 9110, section 8.4.1)."""

from __future__ import annotations

import zlib

from kserve_wasm.errors import InvalidRequest, PayloadTooLarge
from kserve_wasm.server.rest.answer import Answer
from kserve_wasm.tensors.tensor import BytesLike

MIN_BYTES = 1024
"""Smaller answers are not compressed."""
_GZIP, _ZLIB, _RAW = 31, zlib.MAX_WBITS, -zlib.MAX_WBITS


def decompress(body: BytesLike, coding: bytes, limit: int) -> BytesLike:
    """Undo the ``Content-Encoding`` of a request.

    Args:
        body: the body as it came.
        coding: the header's value, in any case.
        limit: bytes above which the body is refused, whatever it would grow to.

    Raises:
        InvalidRequest: the coding is unknown, or the body is not what it says it is.
        PayloadTooLarge: there is more than ``limit`` in it.
    """
    coding = coding.strip().lower()
    if coding in (b"", b"identity"):
        return body
    data = memoryview(body)
    if coding in (b"gzip", b"x-gzip"):
        bits = _GZIP
    elif coding == b"deflate":
        # RFC 9110 means zlib's format by it; some clients send bare deflate data.
        is_zlib = len(data) >= 2 and data[0] & 15 == 8 and (data[0] << 8 | data[1]) % 31 == 0
        bits = _ZLIB if is_zlib else _RAW
    else:
        raise InvalidRequest(
            f"Content-Encoding '{coding[:40].decode('latin-1')}' is not supported; send gzip, deflate or identity"
        )
    stream = zlib.decompressobj(bits)
    try:
        plain = stream.decompress(data, limit + 1)
    except zlib.error as error:
        raise InvalidRequest(f"the body is not valid {coding.decode()}: {error}") from None
    if len(plain) > limit:
        raise PayloadTooLarge(f"the decompressed body is larger than the limit of {limit} bytes")
    if not stream.eof:
        raise InvalidRequest(f"the body ends inside its {coding.decode()} data")
    if stream.unused_data:
        raise InvalidRequest(
            f"{len(stream.unused_data)} bytes follow the {coding.decode()} data of the body; send one stream of it"
        )
    return plain


def wanted_coding(accept_encoding: bytes | None) -> bytes | None:
    """Choose the coding of an answer: gzip, deflate or None.

    Compressed only when the client asks for gzip or deflate and nothing else, as tritonclient does when told to: HTTP
    libraries list every coding they know by default, and tensors cost more to compress than to send.
    """
    if accept_encoding is None:
        return None
    coding = accept_encoding.strip().lower()
    return coding if coding in (b"gzip", b"deflate") else None


def compress(answer: Answer, coding: bytes) -> None:
    """Replace the body of ``answer`` by its compressed form."""
    stream = zlib.compressobj(1, wbits=_GZIP if coding == b"gzip" else _ZLIB)
    answer.body = [*(stream.compress(part) for part in answer.body), stream.flush()]
    answer.headers.append((b"content-encoding", coding))
