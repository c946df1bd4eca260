"""Import of SR3 checkpoints: the `I<iteration>_E<epoch>_gen.pth` files of its widely used implementation.

Such a file is a state dict. It holds the UNet's tensors under `denoise_fn.` and the buffers of the 2000-step schedule,
which are not needed because the net is conditioned on the noise level √ᾱ and not on t.
"""

import pickle
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddpm.nets.unet import UNet, tensor_mismatch
from ddpm.util.errors import CheckpointError, ConfigError, first_line

SCHEDULE_BUFFERS = frozenset({
    "betas", "alphas_cumprod", "alphas_cumprod_prev", "sqrt_alphas_cumprod", "sqrt_one_minus_alphas_cumprod",
    "log_one_minus_alphas_cumprod", "sqrt_recip_alphas_cumprod", "sqrt_recipm1_alphas_cumprod", "posterior_variance",
    "posterior_log_variance_clipped", "posterior_mean_coef1", "posterior_mean_coef2",
})  # fmt: skip
# UNet's names and SR3's, for the parts of the net and for the parts of a block
PARTS = {
    "embedding.mlp.0": "noise_level_mlp.1",
    "embedding.mlp.2": "noise_level_mlp.3",
    "first": "downs.0",
    "middle": "mid",
    "up": "ups",
    "last_norm": "final_conv.block.0",
    "last": "final_conv.block.3",
}
BLOCK_PARTS = {
    "residual.norm1": "res_block.block1.block.0",
    "residual.conv1": "res_block.block1.block.3",
    "residual.noise": "res_block.noise_func.noise_func.0",
    "residual.norm2": "res_block.block2.block.0",
    "residual.conv2": "res_block.block2.block.3",
    "residual.shortcut": "res_block.res_conv",
    "attention": "attn",
}


def sr3_name(name: str) -> str:
    """Return SR3's name of a parameter of `UNet`, without `denoise_fn.`."""
    if match := re.fullmatch(r"down\.(\d+)\.(.+)", name):
        # SR3 counts the first convolution among its `downs`, and wraps those that halve the size
        inner = match[2] if "." in match[2] else f"conv.{match[2]}"
        name = f"downs.{int(match[1]) + 1}.{inner}"
    for ours, theirs in PARTS.items():
        if name.startswith(f"{ours}."):
            name = theirs + name.removeprefix(ours)
            break
    for ours, theirs in BLOCK_PARTS.items():
        name = name.replace(f".{ours}.", f".{theirs}.")
    return name


def default_norm_groups(width: int) -> int:
    """Return SR3's default, 32, if it divides the width, else the largest divisor up to half the width and 32."""
    if width % 32 == 0:
        return 32
    return max((groups for groups in range(1, min(32, width // 2) + 1) if width % groups == 0), default=1)


def import_sr3(
    path: str | Path,
    *,
    norm_groups: int | None = None,
    image_size: int = 128,
    scale: int = 8,
    coarse_steps: int = 10,
    trust_pickle: bool = False,
) -> UNet:
    """Read an SR3 checkpoint into a `UNet` that returns the same output (eps of the image itself).

    The architecture follows from the shapes of the tensors; the arguments are the settings that do not.

    Args:
        path: the `…_gen.pth`, or a file with the state dict of the UNet alone.
        norm_groups: groups of every GroupNorm, `norm_groups` in the model's JSON; None: `default_norm_groups(width)`.
        image_size: side of the pictures that the model was trained on.
        scale: factor by which the model enlarges.
        coarse_steps: default S of the coarse stage.
        trust_pickle: whether to unpickle everything in the file, which runs any code stored in it.

    Returns:
        The net in float32, in inference mode.

    Raises:
        CheckpointError: the file is damaged, needs unpickling of code, or is not of the SR3 architecture.
        ConfigError: an argument is out of range or does not fit the architecture.
    """
    tensors = _unet_tensors(path, read_state_dict(path, trust_pickle))
    architecture, attending = _architecture(path, tensors)
    stride = 2 ** (len(architecture["multipliers"]) - 1)
    if image_size < 1 or image_size % stride:
        raise ConfigError(f"the image size must be a multiple of {stride}, the net's stride, got {image_size}")
    config = {
        **architecture,
        "attention_resolutions": [image_size // 2**level for level in attending],
        "image_size": image_size,
        "dropout": 0.0,
        "norm_groups": default_norm_groups(architecture["width"]) if norm_groups is None else norm_groups,
        "patch_size": 1,
        "noise_level_scale": 1.0,
        "prediction": "eps",
        "target": "image",
        "scale": scale,
        "coarse_steps": coarse_steps,
    }
    with torch.device("meta"):  # uses no memory, since the shapes may be nonsense
        expected = {sr3_name(name): tensor for name, tensor in UNet(**config).state_dict().items()}
    if mismatch := tensor_mismatch(expected, tensors):
        raise CheckpointError(f"{path} is not of SR3's architecture: {mismatch}")
    unet = UNet(**config)
    unet.load_state_dict({name: tensors[sr3_name(name)] for name in unet.state_dict()})
    return unet.eval().requires_grad_(False)


def describe(unet: UNet, guessed_groups: bool) -> str:
    """Return a description of the architecture in two lines, with the number of groups, which no file confirms."""
    config = unet.settings
    multipliers = ",".join(map(str, config["multipliers"]))
    attention = ", ".join(map(str, config["attention_resolutions"])) or "none but the middle"
    source = (
        "the default, since the file does not contain it; other groups: --norm-groups" if guessed_groups else "as given"
    )
    return (
        f"architecture: width {config['width']}, multipliers {multipliers}, blocks {config['blocks']}, attention at "
        f"{attention} (image size {config['image_size']}), {sum(p.numel() for p in unet.parameters()):,} parameters\n"
        f"norm groups: {config['norm_groups']} ({source})"
    )


def read_state_dict(path: str | Path, trust_pickle: bool = False) -> dict[str, Tensor]:
    """Read a file of `torch.save` that holds a dictionary of tensors, onto the CPU.

    Raises:
        CheckpointError: the file is missing, damaged or of another kind, or needs unpickling of untrusted code.
    """
    try:
        with warnings.catch_warnings():  # warnings about pickle protocols
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=not trust_pickle)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from None
    except Exception as error:  # a damaged file can make the unpickler raise anything
        if not trust_pickle and isinstance(error, pickle.UnpicklingError) and (reason := _pickled_code(path, error)):
            raise CheckpointError(
                f"{path} cannot be read without running code stored in it ({reason}); "
                "if you trust whoever made it, pass --trust-pickle"
            ) from None
        raise CheckpointError(
            f"{path} is damaged or not a checkpoint of PyTorch ({type(error).__name__}: {first_line(error)}); "
            "give the …_gen.pth of SR3"
        ) from None
    if isinstance(content, Mapping) and "optimizer" in content:
        raise CheckpointError(f"{path} is the state of an optimizer; give the …_gen.pth beside it")
    if not isinstance(content, Mapping) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        raise CheckpointError(
            f"{path} does not hold a state dict but {_describe(content)}; "
            "give the …_gen.pth of SR3, a dictionary of tensors"
        )
    return {str(name): tensor for name, tensor in content.items()}


def _pickled_code(path: str | Path, error: pickle.UnpicklingError) -> str:
    """Return the name of the code that a refused file needs; empty if the file is not a pickle."""
    if match := re.search(r"GLOBAL (\S+)", str(error)):
        return match[1]
    with open(path, "rb") as file:
        return "more than plain tensors" if file.read(2) in (b"PK", b"\x80\x03", b"\x80\x04", b"\x80\x05") else ""


def _describe(content: Any) -> str:
    if not isinstance(content, Mapping):
        return f"an object of type {type(content).__name__}"
    return f"a dictionary with {', '.join(map(repr, list(content)[:3]))}" if content else "an empty dictionary"


def _unet_tensors(path: str | Path, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the UNet's tensors without prefixes, and without the schedule's buffers."""
    tensors = {}
    for name, tensor in state_dict.items():
        bare = name
        while match := re.match(r"(module|denoise_fn)\.", bare):
            bare = bare[match.end() :]
        if bare in tensors:
            raise CheckpointError(f"{path} holds {bare} twice, once as {name}")
        if bare not in SCHEDULE_BUFFERS:
            tensors[bare] = tensor
    return tensors


def _architecture(path: str | Path, tensors: Mapping[str, Tensor]) -> tuple[dict[str, Any], list[int]]:
    """Return width, multipliers and blocks, as found on the way down, and the levels with attention."""

    def channels(name: str) -> int:
        if name not in tensors:
            raise CheckpointError(f"{path} is not of SR3's architecture: it lacks {name}")
        shape = tuple(tensors[name].shape)
        if len(shape) != 4 or 0 in shape:
            raise CheckpointError(f"{path} is not of SR3's architecture: {name} has shape {shape}")
        return shape[0]

    width = channels("downs.0.weight")
    levels: list[list[int]] = [[]]
    attending = []
    last = max(int(match[1]) for name in tensors if (match := re.match(r"downs\.(\d+)\.", name)))
    for i in range(1, last + 1):
        if any(name.startswith(f"downs.{i}.conv.") for name in tensors):
            levels.append([])
            continue
        levels[-1].append(channels(f"downs.{i}.res_block.block2.block.3.weight"))
        if any(name.startswith(f"downs.{i}.attn.") for name in tensors) and len(levels) - 1 not in attending:
            attending.append(len(levels) - 1)
    if any(not level or len(level) != len(levels[0]) or len(set(level)) > 1 or level[0] % width for level in levels):
        raise CheckpointError(
            f"{path} is not of SR3's architecture: its levels should have as many blocks each, all of one multiple of "
            f"the width {width}, but the channels of the blocks are {levels}"
        )
    return {"width": width, "multipliers": [level[0] // width for level in levels], "blocks": len(levels[0])}, attending
