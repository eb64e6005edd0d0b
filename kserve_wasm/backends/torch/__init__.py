"""PyTorch graphs: programs of ``torch.export`` and TorchScript archives."""

from kserve_wasm.backends.torch.backend import PyTorchBackend

__all__ = ["PyTorchBackend"]
