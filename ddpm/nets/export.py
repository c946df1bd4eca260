"""ONNX graphs: one of a single network, and one of a whole enlargement by one forward."""

import io
import math
import warnings
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn

from ddpm.checkpoints import load_unet
from ddpm.nets.denoiser import x0_weights
from ddpm.nets.unet import UNet
from ddpm.pictures.images import check_folder
from ddpm.schedule import cosine_alphas_cumprod
from ddpm.util.errors import ConfigError, first_line
from ddpm.util.files import atomic_path, check_ending
from ddpm.util.packages import package

# Version of ONNX's operators, one that runtimes have known since 2023.
OPSET = 18
# Largest difference between a graph's pictures in [0, 1] and torch's.
TOLERANCE = 0.5 / 255
# Names of free axes of pictures.
BATCH, HEIGHT, WIDTH = "batch", "height", "width"


def _group_norm(
    x: Tensor, num_groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    """Return the result of `torch.nn.functional.group_norm`, computed from means and products.

    OpenVINO (2026.4) converts every normalisation that it recognises to its operator MVN, which crashes on CPUs without
    AVX-512 where the number of values is not a multiple of 8. It does not recognise this one.
    """
    groups = x.reshape(x.shape[0], num_groups, -1)
    centred = groups - groups.mean(2, keepdim=True)
    x = (centred * torch.rsqrt((centred * centred).mean(2, keepdim=True) + eps)).reshape(x.shape)
    x = x if weight is None else x * weight[:, None, None]
    return x if bias is None else x + bias[:, None, None]


def traced(
    network: nn.Module,
    inputs: Mapping[str, Tensor],
    axes: Mapping[str, Mapping[int, str]] | None = None,
    output: str = "out",
) -> bytes:
    """Return the ONNX graph of a network.

    Args:
        network: a network in inference mode.
        inputs: an example of each input, by the input's name in the graph.
        axes: free axes of inputs and of the output, by their index; None: batch, and height and width of pictures.
        output: name of the output.

    Raises:
        ConfigError: the network does something that the exporter does not know.
    """
    package("onnx", "export")  # otherwise torch raises an error of several lines
    if axes is None:
        axes = {name: {0: BATCH, 2: HEIGHT, 3: WIDTH} if x.dim() == 4 else {0: BATCH} for name, x in inputs.items()}
    file = io.BytesIO()
    with warnings.catch_warnings(), torch.no_grad(), mock.patch.object(nn.functional, "group_norm", _group_norm):
        # the older exporter, which traces: it takes 2 s and keeps every size free; the newer takes ten times as long
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        warnings.filterwarnings("ignore", category=torch.jit.TracerWarning)
        try:
            torch.onnx.export(
                network, tuple(inputs.values()), file, dynamo=False, opset_version=OPSET,  # type: ignore[arg-type]
                input_names=list(inputs), output_names=[output], dynamic_axes=axes,
            )  # fmt: skip
        except (torch.onnx.errors.OnnxExporterError, RuntimeError, TypeError) as error:
            raise ConfigError(
                f"torch cannot export this network or its predictor ({first_line(error)}); "
                "take a predictor of the architecture SPAN"
            ) from None
    return file.getvalue()


def _bicubic(lr_image: Tensor, scale: int) -> Tensor:
    """Return the result of `ddpm.pictures.degradation.upsample`, computed by convolutions, which exporters support."""
    offset = (3 * scale + 1) // 2
    x = ((torch.arange(4 * scale) - offset + 0.5) / scale - 0.5).abs()
    kernel = torch.where(x <= 1, 1.5 * x**3 - 2.5 * x**2 + 1, (-0.5 * x**3 + 2.5 * x**2 - 4 * x + 2) * (x < 2))
    weight = (kernel[:, None] * kernel).repeat(3, 1, 1, 1)

    def spread(x: Tensor) -> Tensor:
        return torch.conv_transpose2d(x, weight, stride=scale, groups=3)

    large = spread(lr_image) / spread(torch.ones_like(lr_image))  # pixels outside have no weight
    height, width = lr_image.shape[-2:]
    return large[..., offset : offset + height * scale, offset : offset + width * scale].clamp(-1, 1)


class OneForward(nn.Module):
    """One forward from pure noise to the picture, with the steps before and after it.

    Args:
        unet: the network.
        network: the network that runs, the plain one or that of the jumps.
    """

    def __init__(self, unet: UNet, network: UNet) -> None:
        super().__init__()
        self.unet, self.network, self.predictor = unet, network, unet.predictor
        self.eval()

    def forward(self, image: Tensor, noise: Tensor, detail: Tensor | None = None) -> Tensor:
        """Return the enlarged pictures.

        Args:
            image: (B, 3, h, w) in [0, 1].
            noise: standard normal, (B, 3, H, W); it is repeated periodically where the network's stride needs more.
            detail: for the network of the jumps, (1,) in [0, 1].
        """
        unet, lr_image = self.unet, image * 2 - 1
        if self.predictor is None:
            condition = _bicubic(lr_image, unet.scale)
        else:
            condition = self.predictor.condition(lr_image, _bicubic)
        height, width = condition.shape[-2:]
        rows, columns = (torch.arange(_padded(side, unet.multiple)) for side in (height, width))
        condition = condition.index_select(2, rows.clamp(max=height - 1)).index_select(3, columns.clamp(max=width - 1))
        x_t = noise.index_select(2, rows % noise.shape[2]).index_select(3, columns % noise.shape[3])
        alpha = float(cosine_alphas_cumprod(1)[1])
        signal, sigma = alpha**0.5, (1 - alpha) ** 0.5
        level = torch.full_like(x_t[:, 0, 0, 0], signal)
        jump = []
        if detail is not None:
            jump = [torch.ones_like(level), level * 0 + (unet.substeps ** detail.clamp(0, 1)).round()]
        of_out, of_x_t = x0_weights(unet.prediction, signal, sigma)
        x0 = self.network(condition, x_t, level, *jump) * of_out + x_t * of_x_t
        return (unet.decode(x0, condition)[..., :height, :width] + 1) / 2


def _padded(side: Any, stride: int) -> Any:
    """Return the next multiple of the stride."""
    return (side + stride - 1) // stride * stride


def _branch(onnx: Any, graph: bytes, weights: dict[bytes, Any]) -> Any:
    """Return a graph as a branch of `If`, without inputs and weights; equal weights of all branches are kept once."""
    branch = onnx.load_from_string(graph).graph
    renamed = {}
    for tensor in branch.initializer:
        name, tensor.name = tensor.name, ""
        kept = weights.setdefault(tensor.SerializeToString(deterministic=True), tensor)
        kept.name = kept.name or f"weight_{len(weights)}"
        renamed[name] = kept.name
    for node in branch.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]
    del branch.initializer[:], branch.input[:]
    return branch


def build(unet: UNet, detail: float = 1.0) -> Any:
    """Return the ONNX model of `OneForward`, with the inputs `image` and `noise` and the output `sr`.

    A network with substeps also has the input `detail`. A forward then has `UNet.substeps` ** detail substeps, rounded.
    Where that is 1, the plain network runs.

    Args:
        unet: a network that predicts v.
        detail: default of that input.

    Raises:
        ConfigError: the network does something that the exporter does not know.
    """
    onnx = package("onnx", "export")
    helper, float_type = onnx.helper, onnx.TensorProto.FLOAT
    example = {"image": torch.rand(2, 3, 5, 7), "noise": torch.randn(2, 3, 5 * unet.scale, 7 * unet.scale)}
    small = {0: BATCH, 2: HEIGHT, 3: WIDTH}
    large = {0: BATCH, 2: f"sr_{HEIGHT}", 3: f"sr_{WIDTH}"}

    def graph(network: UNet, output: str, **more: Tensor) -> bytes:
        axes = {"image": small, "noise": large, output: large}
        return traced(OneForward(unet, network), {**example, **more}, axes, output)

    if unet.substeps == 1:
        return onnx.load_from_string(graph(unet, "sr"))
    weights: dict[bytes, Any] = {}
    branches = {
        "else_branch": _branch(onnx, graph(unet, "sr_plain"), weights),
        "then_branch": _branch(onnx, graph(unet._jumps[0], "sr_several", detail=torch.ones(1)), weights),
    }
    nodes = [
        helper.make_node("Constant", [], ["one_and_a_half"], value_floats=[math.log(1.5, unet.substeps)]),
        helper.make_node("Greater", ["detail", "one_and_a_half"], ["several"]),
        helper.make_node("If", ["several"], ["sr"], **branches),
    ]
    inputs = [
        helper.make_tensor_value_info(name, float_type, shape)
        for name, shape in (
            ("image", (BATCH, 3, HEIGHT, WIDTH)), ("noise", (BATCH, 3, large[2], large[3])), ("detail", (1,)),
        )
    ]  # fmt: skip
    output = helper.make_tensor_value_info("sr", float_type, (BATCH, 3, large[2], large[3]))
    default = helper.make_tensor("detail", float_type, (1,), [detail])
    whole = helper.make_graph(nodes, "skipdiff", inputs, [output], [default, *weights.values()])
    return helper.make_model(whole, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)


def _check(model: Any, unet: UNet) -> None:
    """Raise ConfigError if a graph returns other pictures than torch, at a size other than that of the trace."""
    from onnx.reference import ReferenceEvaluator

    image = torch.linspace(0, 1, 9).expand(1, 3, 6, 9).contiguous()
    noise = torch.randn(1, 3, 6 * unet.scale, 9 * unet.scale, generator=torch.Generator().manual_seed(0))
    inputs = {"image": image, "noise": noise}
    run: Any = ReferenceEvaluator(model).run
    for detail in (0.0, 0.5) if unet.substeps > 1 else (0.0,):
        more = {"detail": torch.tensor([detail])} if unet.substeps > 1 else {}
        with torch.inference_mode():
            network = OneForward(unet, unet._jumps[0] if detail else unet)
            expected = network(**inputs, **(more if detail else {})).numpy()
        with np.errstate(all="ignore"):
            found = run(None, {name: x.numpy() for name, x in {**inputs, **more}.items()})[0]
        if found.shape != expected.shape or not np.abs(found - expected).max() < TOLERANCE:
            raise ConfigError(
                "the exported graph returns other pictures than torch at another size; "
                "take a predictor of the architecture SPAN"
            )


def export_onnx(checkpoint: str | Path, out: str | Path, detail: float | None = None, overwrite: bool = False) -> None:
    """Write predictor, network and result of one forward as an ONNX graph, see `build`.

    Args:
        checkpoint: name of a shipped checkpoint, folder, or Hub id; its network predicts v.
        out: the file, whose name ends in .onnx.
        detail: default of the input of that name, 0 … 1; None: 1. A network without substeps does not have this input.
        overwrite: whether to replace an existing file.

    Raises:
        CheckpointError: the checkpoint is unknown or damaged.
        ConfigError: the file cannot be written, a package is missing, or the network cannot be exported.
    """
    out = Path(out)
    check_ending(out, [".onnx"])
    if out.is_dir():
        raise ConfigError(f"{out} is a folder; give another --out")
    if not overwrite and (out.exists() or out.is_symlink()):
        raise ConfigError(f"{out} exists; replace it with --overwrite, or give another --out")
    if not out.parent.is_dir():
        raise ConfigError(f"no such folder: {out.parent}; make it, or give another --out")
    check_folder(out.parent)
    if detail is not None and not 0 <= detail <= 1:
        raise ConfigError(f"detail must lie in 0 … 1, got {detail}")
    onnx = package("onnx", "export")
    unet = load_unet(checkpoint)
    if unet.prediction != "v":
        raise ConfigError(
            f"one forward from noise needs a network that predicts v, but {checkpoint} predicts {unet.prediction}; "
            "take another checkpoint"
        )
    if detail is not None and unet.substeps == 1:
        raise ConfigError(
            f"--detail is for networks with substeps, and {checkpoint} has none; train them with "
            "`skipdiff train-substeps`, or leave --detail out"
        )
    model = build(unet, 1.0 if detail is None else detail)
    model.producer_name, model.producer_version = "skipdiff", version("skipdiff")
    properties = {
        "checkpoint": Path(checkpoint).name if Path(checkpoint).is_dir() else checkpoint,
        "scale": unet.scale,
        "stride": unet.multiple,
        "most_substeps": unet.substeps,
        "version": version("skipdiff"),
    }
    onnx.helper.set_model_props(model, {name: str(value) for name, value in properties.items()})
    onnx.checker.check_model(model, full_check=True)
    _check(model, unet)
    with atomic_path(out) as temporary:
        onnx.save(model, temporary)
