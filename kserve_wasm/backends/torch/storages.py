"""What a TorchScript archive's pickles say of its records, held against the records.

PyTorch believes the length that a pickle gives for a storage, and its operators then read that far beyond a shorter
record. Nothing is made here of what a pickle names: every class is the same inert one.
"""

from __future__ import annotations

import io
import pickle
from typing import Any

from kserve_wasm.backends.torch.archive import Archive
from kserve_wasm.errors import BackendError

_ITEMSIZES = {
    "BoolStorage": 1,
    "ByteStorage": 1,
    "CharStorage": 1,
    "ShortStorage": 2,
    "IntStorage": 4,
    "LongStorage": 8,
    "HalfStorage": 2,
    "BFloat16Storage": 2,
    "FloatStorage": 4,
    "DoubleStorage": 8,
    "ComplexFloatStorage": 8,
    "ComplexDoubleStorage": 16,
    "QInt8Storage": 1,
    "QUInt8Storage": 1,
    "QInt32Storage": 4,
}
"""``torch.*Storage``; of others the length is taken to be in bytes."""


def check_storages(archive: Archive) -> None:
    """Holds the pickles of ``archive`` against its records.

    Raises:
        BackendError: a storage is longer than its record, or a pickle is damaged.
    """
    for name in (
        "data.pkl",
        "constants.pkl",
    ):  # of traced inputs there are only types: their records are empty
        if name in archive:
            try:
                _Reader(archive, name.removesuffix(".pkl")).load()
            except BackendError:
                raise
            except Exception as error:  # whatever damaged pickles do to the unpickler
                raise BackendError(f"the archive's record '{name}' is damaged") from error


class _Inert:
    """Takes what a pickle does to its objects, and does nothing."""

    name = ""

    def __new__(cls, *_: object) -> _Inert:
        return object.__new__(cls)

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, _: object) -> None:
        pass

    def __setitem__(self, _: object, __: object) -> None:
        pass

    def append(self, _: object) -> None:
        pass

    def extend(self, _: object) -> None:
        pass


class _Reader(pickle.Unpickler):
    def __init__(self, archive: Archive, folder: str) -> None:
        super().__init__(io.BytesIO(archive.read(f"{folder}.pkl")))
        self._archive = archive
        self._folder = folder

    def find_class(self, module: str, name: str) -> Any:
        return type("Inert", (_Inert,), {"name": name if module == "torch" else ""})

    def persistent_load(self, pid: Any) -> Any:
        # ("storage", class, record, device, elements); torch/csrc/jit/serialization/unpickler.cpp
        kind, storage, record, _, elements = pid
        size = self._archive.size(f"{self._folder}/{record}")
        if kind != "storage" or not 0 <= elements * _ITEMSIZES.get(storage.name, 1) <= size:
            raise BackendError(
                f"the archive's record '{self._folder}/{record}' is shorter than its weights are said to be"
            )
        return _Inert()
