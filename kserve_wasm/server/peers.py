"""What reaches every process that answers on this server's ports: this one alone, or it and the other workers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from kserve_wasm.model import WasmModel
    from kserve_wasm.server.repository import WasmModelRepository


class Peers(Protocol):
    """The processes that share the ports."""

    async def load(self, name: str) -> None:
        """Load a model, or load it again, in all of them; see :meth:`WasmModelRepository.load`."""

    async def unload(self, name: str) -> None:
        """Unload a model in all of them; see :meth:`WasmModelRepository.unload`."""

    async def statistics(self, models: Sequence[WasmModel]) -> list[dict[str, Any]]:
        """Give name, version and statistics (Triton's JSON) of each of ``models``, all processes together."""


class Alone:
    """One process is all there is.

    Args:
        repository: its models.
    """

    def __init__(self, repository: WasmModelRepository) -> None:
        self._repository = repository

    async def load(self, name: str) -> None:
        """Load a model here."""
        await self._repository.load(name)

    async def unload(self, name: str) -> None:
        """Unload a model here."""
        await self._repository.unload(name)

    async def statistics(self, models: Sequence[WasmModel]) -> list[dict[str, Any]]:
        """Give the statistics of ``models``."""
        return statistics_rows(models)


def statistics_rows(models: Sequence[WasmModel]) -> list[dict[str, Any]]:
    """Give name, version and statistics of each of ``models``, as this process counts them."""
    return [{"name": model.name, "version": model.version, **model.statistics.snapshot()} for model in models]
