"""Opens PyTorch graphs: which format, which device."""

from __future__ import annotations

import torch

from kserve_wasm.backends.base import Device, GraphSource
from kserve_wasm.backends.cpus import available_cpus
from kserve_wasm.backends.torch import exported, script
from kserve_wasm.backends.torch.archive import Archive
from kserve_wasm.backends.torch.errors import plain
from kserve_wasm.backends.torch.graph import TorchGraph
from kserve_wasm.backends.torch.options import PyTorchOptions, parse
from kserve_wasm.backends.torch.program import Program
from kserve_wasm.errors import BackendError, DeviceUnavailable, ModelLoadError, WasmServingError
from kserve_wasm.tensors import devices


class PyTorchBackend:
    """PyTorch. Options of a graph: :class:`~kserve_wasm.backends.torch.options.PyTorchOptions`."""

    def open(self, source: GraphSource, device: Device) -> TorchGraph:
        """Opens a graph.

        Raises:
            ModelLoadError: an option is unknown or wrong, or one is missing.
            DeviceUnavailable: there is no GPU, and the options do not allow the CPU.
            BackendError: the archive is none that can be run.
        """
        options = parse(source.options)
        where = _device(options, device)
        try:
            program = _open(Archive(source), options, where)
        except WasmServingError as error:
            raise type(error)(f"graph '{source.name}': {error}") from error
        except Exception as error:
            raise BackendError(f"graph '{source.name}' cannot be opened: {plain(error)}") from error
        accelerator = None if where.type == "cpu" else devices.cuda(options.device_id)
        return TorchGraph(source.name, program, accelerator, options.intra_op_threads or available_cpus())


def _open(archive: Archive, options: PyTorchOptions, device: torch.device) -> Program:
    names = archive.names
    if any(name.startswith("models/") for name in names):
        if options.inputs or options.outputs:
            raise ModelLoadError(
                "an exported program says its inputs and outputs itself: remove these options"
            )
        return exported.open_program(archive, device)
    if any(name.startswith("code/") for name in names):
        return script.open_program(archive, options, device)
    if "data.pkl" in archive:
        raise BackendError(
            "the archive holds weights or a pickled object, and no graph; save one with torch.export.save"
        )
    raise BackendError(
        "the archive holds neither a program of torch.export (as PyTorch 2.9 and later save it) nor TorchScript"
    )


def _device(options: PyTorchOptions, device: Device) -> torch.device:
    if device == "gpu":
        found = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if options.device_id < found:
            return torch.device("cuda", options.device_id)
        if not options.fallback:
            built = f"CUDA {torch.version.cuda}" if torch.version.cuda else "no CUDA"
            raise DeviceUnavailable(
                f"PyTorch {torch.__version__} here is built with {built} and finds {found} GPUs; check the driver and "
                "device_id, install a build with CUDA, or allow the CPU with the graph's option 'fallback: true'"
            )
    return torch.device("cpu")
