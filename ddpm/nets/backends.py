"""ONNX Runtime and OpenVINO as programs that run a UNet, its jumps and its predictor on the CPU instead of torch."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cache
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ddpm.nets.export import traced
from ddpm.nets.unet import UNet
from ddpm.util.checks import check_one_of
from ddpm.util.errors import ConfigError
from ddpm.util.files import atomic_path, cache_folder
from ddpm.util.packages import package

# Largest difference from torch's output, relative to the largest number in that output.
TOLERANCE = 1e-3
# (inputs) → output.
Run = Callable[[Sequence[np.ndarray]], np.ndarray]


def _onnxruntime(graph: bytes) -> Run:
    onnxruntime = package("onnxruntime", "onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    names = [slot.name for slot in session.get_inputs()]
    return lambda inputs: session.run(None, dict(zip(names, inputs, strict=True)))[0]


@cache
def _core() -> Any:
    """Return the `openvino.Core` of this process.

    It is never released: each CPU plugin replaces the stack on which signals are handled, and if two of them end in the
    order in which they began, that stack is freed while it is in use, and the next signal ends the process.
    """
    return package("openvino", "openvino").Core()


def _openvino(graph: bytes) -> Run:
    core = _core()
    # without the first setting, OpenVINO rounds to 16 bits on processors that are faster with them
    settings = {
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "NUM_STREAMS": 1,
    }
    compiled = core.compile_model(core.read_model(graph), "CPU", settings)
    return lambda inputs: compiled(list(inputs), share_inputs=True)[0]


PROGRAMS: Mapping[str, Callable[[bytes], Run]] = {"onnxruntime": _onnxruntime, "openvino": _openvino}
BACKENDS = ("torch", *PROGRAMS)


def _graph(network: nn.Module, inputs: Mapping[str, Tensor]) -> bytes:
    """Return the ONNX graph of a network, from the cache if it is there and intact.

    A file of the cache holds 32 bytes SHA-256, then the graph.
    """
    key = hashlib.sha256()
    settings = getattr(network, "settings", None)
    key.update(f"{version('skipdiff')} {torch.__version__} {list(inputs)} {settings} {network}".encode())
    for name, tensor in network.state_dict().items():
        key.update(name.encode() + tensor.numpy().tobytes())
    file = cache_folder() / key.hexdigest()
    with suppress(OSError):
        stored = file.read_bytes()
        if hashlib.sha256(stored[32:]).digest() == stored[:32]:
            return stored[32:]
    graph = traced(network, inputs)
    with suppress(OSError), atomic_path(file) as temporary:  # without a cache the graph is made each time
        temporary.write_bytes(hashlib.sha256(graph).digest() + graph)
    return graph


class Compiled:
    """The forward of a network, run by another program than torch.

    Args:
        network: a network in inference mode, float32, on the CPU.
        example: (factor of the size) → example of each input, by name.
        backend: one of `PROGRAMS`.

    Raises:
        ConfigError: the network cannot be exported, or has another output in that program.
    """

    def __init__(self, network: nn.Module, example: Callable[[int], Mapping[str, Tensor]], backend: str) -> None:
        self.inputs, self.by_torch = len(example(1)), network.forward
        self.run = PROGRAMS[backend](_graph(network, example(2)))
        inputs = example(3).values()
        with torch.inference_mode():
            expected = self.by_torch(*inputs)
            found = self(*inputs)
        if found.shape != expected.shape or not (found - expected).abs().max() < TOLERANCE * expected.abs().max():
            raise ConfigError(
                f"{type(network).__name__} has another output in {backend} than in torch; take the backend torch"
            )

    def __call__(self, *inputs: Tensor) -> Tensor:
        """Return the output of the network; with more inputs than the graph has, those of substeps, torch runs it."""
        if len(inputs) != self.inputs:
            return self.by_torch(*inputs)
        try:
            return torch.from_numpy(self.run([np.ascontiguousarray(x.detach().numpy()) for x in inputs]))
        except Exception as error:
            if "alloc" not in str(error).lower():
                raise
            raise MemoryError(str(error)) from None


def run_by(backend: str, unet: UNet, device: str = "cpu") -> UNet:
    """Let a program run the networks of a UNet: the plain one, that of the jumps, and the predictor.

    Only their forwards are replaced, so that the UNet is used as before. They use as many threads as torch does now.

    Args:
        backend: one of `BACKENDS`.
        unet: the network, in inference mode.
        device: the device of the UNet.

    Returns:
        The same UNet.

    Raises:
        ConfigError: the backend is unknown, is not installed, or does not fit the device or the network.
    """
    check_one_of(BACKENDS, backend=backend)
    if backend == "torch":
        return unet
    if torch.device(device).type != "cpu":
        raise ConfigError(f"the backend {backend} runs on the device cpu, got {device!r}; take the backend torch")
    for name in ("onnx", backend):
        package(name, backend)

    def low(factor: int) -> dict[str, Tensor]:
        return {"lr_image": torch.linspace(0, 1, 7 * factor).expand(2, 3, 5 * factor, 7 * factor).contiguous()}

    def plain(factor: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(0)
        picture = torch.rand(2, 3, unet.multiple * factor, unet.multiple * (factor + 1), generator=generator)
        return {"lr_up": picture, "x_t": picture.flip(3), "noise_level": torch.full((2,), 0.5)}

    def jumps(factor: int) -> dict[str, Tensor]:
        return {**plain(factor), "to_level": torch.full((2,), 0.9), "substeps": torch.full((2,), 2.0)}

    networks: list[tuple[nn.Module, Any]] = [(unet, plain), *((each, jumps) for each in unet._jumps)]
    networks += [(unet.predictor.net, low)] if unet.predictor is not None else []
    for network, example in networks:
        network.forward = Compiled(network, example, backend)
    return unet
