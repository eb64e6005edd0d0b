"""The zip archives that PyTorch saves: their records, without a copy where they lie uncompressed.

Sources: ``caffe2/serialize/inline_container.h`` (the container), PyTorch's documentation "PT2 Archive" and "TorchScript
serialization". Nothing here is ever unpickled, and no name of a record becomes a path.
"""

from __future__ import annotations

import io
import mmap
import struct
import zipfile
from collections.abc import Collection

from kserve_wasm.backends.base import GraphSource
from kserve_wasm.errors import BackendError

_MOST_INFLATED = 64 << 20
"""Bytes that an archive's records may hold beyond the archive's own length: code is compressed, weights are not."""
_END, _END_LENGTH = b"PK\5\6", 22  # the end of the directory, without a comment
_LOCAL_HEADER = struct.Struct("<4s22xHH")


class Archive:
    """The records of one archive, by their names below its root folder.

    Raises:
        BackendError: it is no archive, is damaged, or says less than it means (a record twice, or far larger than it).
    """

    def __init__(self, source: GraphSource) -> None:
        self._memory = _map(source)
        try:
            # Not to be searched for: an archive may hold others, whose directory would be found in a damaged one.
            if bytes(self._memory[-_END_LENGTH:][:4]) != _END:
                raise zipfile.BadZipFile
            self._zip = zipfile.ZipFile(_Window(self._memory))
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
            raise BackendError(
                "it is no archive of PyTorch, which is a zip file, or a damaged one"
            ) from error
        members = self._zip.infolist()
        root = members[0].filename.partition("/")[0] + "/" if members else ""
        self._members = {member.filename.removeprefix(root): member for member in members}
        if len(self._members) < len(members) or not all(m.filename.startswith(root) for m in members):
            raise BackendError("the archive has a record twice, or several root folders")
        if sum(member.file_size for member in members) > len(self._memory) + _MOST_INFLATED:
            raise BackendError("the archive's records are far larger than the archive")

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the records."""
        return tuple(self._members)

    def __contains__(self, name: str) -> bool:
        return name in self._members

    def size(self, name: str) -> int:
        """A record's length in bytes."""
        return self._member(name).file_size

    def read(self, name: str) -> bytes:
        """A record's bytes, its checksum verified."""
        try:
            return self._zip.read(self._member(name))
        except (zipfile.BadZipFile, EOFError, ValueError, NotImplementedError, RuntimeError) as error:
            raise BackendError(f"the archive's record '{name}' is damaged") from error

    def view(self, name: str) -> memoryview:
        """The archive's own memory of a record, which is not compressed."""
        member = self._member(name)
        if member.compress_type != zipfile.ZIP_STORED or member.file_size != member.compress_size:
            raise BackendError(
                f"the archive's record '{name}' is compressed; save the model again with PyTorch"
            )
        # The local header repeats the name, and has padding of its own before the data.
        header = self._memory[member.header_offset : member.header_offset + _LOCAL_HEADER.size]
        if len(header) < _LOCAL_HEADER.size:
            raise BackendError(f"the archive's record '{name}' is damaged")
        magic, name_length, extra_length = _LOCAL_HEADER.unpack(header)
        start = member.header_offset + _LOCAL_HEADER.size + name_length + extra_length
        end = start + member.file_size
        if magic != b"PK\3\4" or end > len(self._memory):
            raise BackendError(f"the archive's record '{name}' is damaged")
        return self._memory[start:end]

    def rewritten(self, folders: Collection[str]) -> bytes:
        """An archive of the records in ``folders``, so that another reader cannot see other ones than this did.

        Without those that tell where code came from: PyTorch trusts them, and they only serve its error messages.

        Args:
            folders: the first parts of their names, without the ending of a pickle.
        """
        target = io.BytesIO()
        with zipfile.ZipFile(target, "w") as copy:
            for name in self._members:
                folder = name.partition("/")[0].removesuffix(".pkl")
                if folder in folders and not name.endswith(".debug_pkl"):
                    copy.writestr(f"archive/{name}", self.read(name))
        return target.getvalue()

    def _member(self, name: str) -> zipfile.ZipInfo:
        member = self._members.get(name)
        if member is None:
            raise BackendError(f"the archive has no record '{name}'")
        return member


def _map(source: GraphSource) -> memoryview:
    """The graph's bytes. A file is mapped privately: what is written to that memory, if anything, stays in it."""
    if source.data is not None:
        return memoryview(source.data)
    if source.path is None:
        raise BackendError("neither a file nor bytes are given")
    with source.path.open("rb") as file:
        size = file.seek(0, io.SEEK_END)
        end = size if source.length is None else source.offset + source.length
        if end > size:
            raise BackendError(f"its file ends after {size - source.offset} of {source.length} bytes")
        if size == 0:
            return memoryview(b"")
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY))[source.offset : end]


class _Window(io.RawIOBase):
    """A file over memory, for the directory of the zip."""

    def __init__(self, memory: memoryview) -> None:
        self._memory = memory
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: len(self._memory)}[whence]
        if base + offset < 0:
            raise OSError("before the beginning")  # zipfile takes it for the end of its search
        self._at = base + offset
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # typeshed: any writable buffer
        part = self._memory[self._at : self._at + len(buffer)]
        buffer[: len(part)] = part
        self._at += len(part)
        return len(part)
