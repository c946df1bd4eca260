"""Training of a predictor: spandrel's SPAN, for enlargements that do not have one yet."""

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ddpm.nets.predictor import PREDICTOR, fuse, load_predictor, refuse_not_finite
from ddpm.pictures.degradation import upsample
from ddpm.training import trainer
from ddpm.training.configs import PredictorConfig
from ddpm.training.trainer import Trainee
from ddpm.util.errors import CheckpointError, one_line
from ddpm.util.files import atomic_path
from ddpm.util.packages import ensure_torchvision


def _span(config: PredictorConfig) -> nn.Module:
    """Return a SPAN with its initial weights.

    A net with random weights does not normalise to 255 levels, because that slows down learning.

    Raises:
        CheckpointError: `init` is not a SPAN of this scale and width.
    """
    ensure_torchvision()
    from spandrel.architectures.SPAN import SPAN

    tensors = None
    if config.init is not None:
        load_predictor(config.init, config.scale)  # refuses damaged files
        tensors = load_file(config.init)
    norm = tensors is not None and "no_norm" not in tensors
    net = SPAN(num_in_ch=3, num_out_ch=3, feature_channels=config.channels, upscale=config.scale, norm=norm)
    if tensors is not None:
        try:
            net.load_state_dict(tensors)
        except RuntimeError as error:
            reason = one_line(error)[:160]
            raise CheckpointError(
                f"training cannot begin with {config.init}: {reason}; take a SPAN of {config.channels} channels"
            ) from None
    return net


def _expanded(fused: nn.Module, span: nn.Module) -> dict[str, Tensor]:
    """Return the state of a SPAN whose expanded convolutions equal the plain ones of the trained net.

    SPAN expands a convolution into three, 1 x 1, 3 x 3 and 1 x 1, and a shortcut. Here the outer ones pass the channels
    through, the 3 x 3 between them is the plain convolution, and the shortcut is zero.
    """
    plain = dict(fused.named_modules())
    for name, module in span.named_modules():
        if not hasattr(module, "eval_conv"):
            continue
        conv = plain[name]
        assert isinstance(conv, nn.Conv2d)
        wide, kernel, narrow = module.conv
        for parameter in module.parameters():
            nn.init.zeros_(parameter)
        nn.init.dirac_(wide.weight)
        nn.init.dirac_(narrow.weight)
        with torch.no_grad():
            kernel.weight[: conv.out_channels, : conv.in_channels] = conv.weight
            narrow.bias.copy_(conv.bias)
            module.update_params()
    others = {name: tensor for name, tensor in fused.state_dict().items() if name in span.state_dict()}
    span.load_state_dict({**span.state_dict(), **others})
    return {name: tensor.detach().cpu().contiguous() for name, tensor in span.state_dict().items()}


def train_predictor(config: PredictorConfig, folder: str | Path, resume: bool = False) -> Path:
    """Train SPAN; its averaged weights go to `folder/checkpoint/predictor.safetensors`, which `train-ddpm` takes.

    They are stored in half precision.

    Args:
        config: the settings.
        folder: the run's folder.
        resume: whether to continue from the newest state in the folder (or start, if there is none yet).

    Returns:
        The file of the trained predictor.

    Raises:
        ConfigError: see `ddpm.training.trainer.fit`.
        CheckpointError: the weights that training begins with do not fit.
        ImageError: the photographs cannot be used.
    """

    def enlarge(net: nn.Module, lr_image: Tensor) -> Tensor:
        return net((lr_image + 1) / 2) * 2 - 1

    distance = trainer.distance(config.loss)

    def make(_: bool) -> Trainee:
        net = _span(config)
        fuse(net)  # a quarter of the time of the expanded net, and the same function
        net.requires_grad_(True).to(memory_format=torch.channels_last)  # type: ignore[call-overload]

        def loss(model: nn.Module, hr: Tensor, lr_image: Tensor) -> Tensor:
            return distance(enlarge(model, lr_image), hr)

        def export(averaged: nn.Module, checkpoint: Path) -> None:
            tensors = {name: tensor.half() for name, tensor in _expanded(averaged, _span(config)).items()}
            refuse_not_finite(tensors, "the predictor")
            with atomic_path(checkpoint / PREDICTOR) as temporary:
                save_file(tensors, temporary)

        @torch.inference_mode()
        def preview(averaged: nn.Module, hr: Tensor, lr_image: Tensor) -> list[Tensor]:
            return [upsample(lr_image, config.scale), enlarge(averaged, lr_image).clamp(-1, 1), hr]

        return Trainee(net, config.scale, loss, export, preview)

    return trainer.fit(config, folder, resume, make, "train-predictor") / PREDICTOR
