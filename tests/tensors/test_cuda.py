"""CUDA's memory functions, called in a library with their signatures and, where there is a GPU, in CUDA's."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kserve_wasm.errors import BackendError, DeviceUnavailable
from kserve_wasm.tensors import DTYPES, Tensor, cuda
from kserve_wasm.tensors.cuda import CudaRuntime
from kserve_wasm.tensors.devices import Accelerator
from tests.support import require
from tests.support.devices import DEVICES, has_cuda, make_device
from tests.support.guests import CACHE


@pytest.fixture(scope="session")
def library() -> Path:
    require(find_spec("ziglang"), "needs a compiler: the package ziglang")
    built = CACHE / "cudart" / "libcudart.so"
    source = Path(__file__).with_name("cudart.c")
    if not built.exists() or built.stat().st_mtime < source.stat().st_mtime:
        built.parent.mkdir(parents=True, exist_ok=True)
        zig = str(CACHE / "zig")
        environment = os.environ | {"ZIG_GLOBAL_CACHE_DIR": zig, "ZIG_LOCAL_CACHE_DIR": zig}
        new = built.with_suffix(f".{os.getpid()}")
        command = [sys.executable, "-m", "ziglang", "cc", "-shared", "-fPIC", "-O1", source, "-o", new]
        subprocess.run(command, env=environment, check=True)
        new.replace(built)
    return built


@pytest.fixture
def stand_in(library: Path, monkeypatch: pytest.MonkeyPatch) -> ctypes.CDLL:
    monkeypatch.setattr(cuda, "_LIBRARIES", (str(library),))
    return ctypes.CDLL(str(library))


@pytest.fixture(params=["stand-in", *DEVICES[1:]])
def device(request: pytest.FixtureRequest) -> Accelerator:
    if request.param == "cuda":
        return make_device("cuda")
    request.getfixturevalue("stand_in")
    return Accelerator(CudaRuntime(0))


def test_bytes_go_there_from_place_to_place_and_back(device: Accelerator) -> None:
    x = np.arange(1000, dtype=np.float32).reshape(10, 100)
    (there,) = Tensor.move([Tensor.from_numpy(x)], device)
    assert (there.device, there.pointer % 256) == ("cuda:0", 0)
    copy = there.rows(3, 7).copied()
    np.testing.assert_array_equal(copy.numpy(), x[3:7])
    np.testing.assert_array_equal(there.numpy(), x)
    pinned = device.pinned(4000).view(np.float32).reshape(10, 100)
    pinned[:] = 2 * x
    (there,) = Tensor.move([Tensor.from_numpy(pinned)], device)
    np.testing.assert_array_equal(there.numpy(), 2 * x)
    assert there.__dlpack_device__() == (2, 0)
    device.runtime.synchronize_all()


def test_memory_comes_back(device: Accelerator) -> None:
    for _ in range(1000):
        (there,) = Tensor.move([Tensor.from_numpy(np.zeros(5000, np.uint8))], device)
        there.numpy()
    del there
    assert device.held_bytes == 0
    device._memory._trim(0, 0)
    device._pinned._trim(0, 0)


def test_an_error_says_which_call_and_why(device: Accelerator) -> None:
    with pytest.raises(BackendError, match=r"cudaMalloc failed on device cuda:0: out of memory \(2\)"):
        device.allocate(1 << 50)
    with pytest.raises(BackendError, match=r"cudaFree failed on device cuda:0: invalid argument \(1\)"):
        device.runtime.free(256)
    (there,) = Tensor.move([Tensor.from_numpy(np.arange(3))], device)  # no error is left behind
    assert there.numpy().tolist() == [0, 1, 2]


def test_a_device_that_is_not_there_is_named(stand_in: ctypes.CDLL) -> None:
    assert CudaRuntime(1).index == 1
    with pytest.raises(DeviceUnavailable, match="no CUDA device 2: this host has 2"):
        CudaRuntime(2)
    devices = ctypes.c_int.in_dll(stand_in, "devices")
    devices.value = 0
    try:
        with pytest.raises(DeviceUnavailable, match=r"no CUDA-capable device .*check the driver"):
            CudaRuntime(0)
    finally:
        devices.value = 2


@pytest.mark.usefixtures("stand_in")
def test_every_thread_and_call_uses_its_own_device() -> None:
    devices = [Accelerator(CudaRuntime(index)) for index in (1, 0, 1)]
    tensors = [Tensor.move([Tensor.from_numpy(np.full(3, i))], d)[0] for i, d in enumerate(devices)]
    assert [tensor.numpy().tolist() for tensor in tensors] == [[0] * 3, [1] * 3, [2] * 3]
    assert [tensor.device for tensor in tensors] == ["cuda:1", "cuda:0", "cuda:1"]


def test_without_the_library_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "_LIBRARIES", ("libcudart.so.none",))
    with pytest.raises(DeviceUnavailable, match=r"libcudart.so.none.*install the 'cuda' extra"):
        CudaRuntime(0)


def test_device_memory_is_tested_on_a_gpu() -> None:
    require(
        has_cuda(),
        "needs an NVIDIA GPU and the 'cuda' extra: hack/test-gpu runs the tests over device memory there",
    )
    assert Accelerator(CudaRuntime(0)).name == "cuda:0"


def test_pytorch_and_this_share_memory_on_the_gpu() -> None:
    require(find_spec("torch"), "needs PyTorch with CUDA")
    torch: Any = import_module("torch")
    require(torch.cuda.is_available(), "needs PyTorch with CUDA")
    x = torch.arange(12, dtype=torch.bfloat16, device="cuda").reshape(3, 4)
    tensor = Tensor.from_dlpack(x)
    assert (tensor.device, tensor.pointer, tensor.dtype) == ("cuda:0", x.data_ptr(), DTYPES["BF16"])
    seen = torch.from_dlpack(tensor.rows(1, 3))
    assert seen.data_ptr() == x[1:].data_ptr()
    assert torch.equal(seen, x[1:])
    assert tensor.numpy().astype(np.float32).reshape(-1).tolist() == list(range(12))
