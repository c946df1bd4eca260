"""SR3's conditional UNet, conditioned on a continuous noise level instead of a step number."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from huggingface_hub import PyTorchModelHubMixin, hf_hub_download
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ddpm.nets.blocks import Block, JumpEmbedding, NoiseLevelEmbedding, Upsample, linear_estimate
from ddpm.nets.denoiser import NoiseLevelDenoiser
from ddpm.nets.predictor import PREDICTOR, Predictor, load_predictor, refuse_not_finite
from ddpm.pictures.degradation import upsample
from ddpm.samplers import coarse_eta
from ddpm.schedule import LONGEST, MOST_SUBSTEPS, as_schedule
from ddpm.util.checks import MOST_TIMES, check_most, check_one_of, check_positive, check_whole, is_whole, shown
from ddpm.util.errors import CheckpointError, ConfigError, first_line

WEIGHTS = "model.safetensors"
# The add-on for substeps, beside the weights.
ADD_ON = "substeps.safetensors"
# Options of a download from the Hub.
HUB = ("revision", "cache_dir", "force_download", "local_files_only", "token")
# Limits above those of any real net, which keep nonsense from filling the memory.
MOST_BLOCKS, MOST_LEVELS = 64, 10


def tensor_mismatch(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> str:
    """Return the differences in name and shape between a net's tensors and those of a file; empty if there are none."""

    def first(items: Sequence[str]) -> str:
        return ", ".join(items[:3]) + (f" and {len(items) - 3} more" if len(items) > 3 else "")

    missing = [name for name in expected if name not in found]
    unknown = [name for name in found if name not in expected]
    shapes = [
        f"{name} has shape {tuple(found[name].shape)} instead of {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in found and found[name].shape != tensor.shape
    ]
    return "; ".join(
        text
        for text, items in (
            (f"it lacks {first(missing)}", missing),
            (f"it holds unknown {first(unknown)}", unknown),
            (first(shapes), shapes),
        )
        if items
    )


def _file_of(source: str, name: str, hub: Mapping[str, Any]) -> Path:
    """Return a file of a checkpoint's folder, or of a repository on the Hub, downloaded."""
    return Path(source) / name if Path(source).is_dir() else Path(hf_hub_download(source, name, **hub))


def _predictor_file(source: str, name: str, hub: Mapping[str, Any]) -> Path:
    """Return the predictor that a configuration names: beside it, at a path, or in another repository on the Hub."""
    if Path(name).is_file() and not (Path(source) / name).is_file():
        return Path(name)
    if name.count("/") == 2 and not name.startswith((".", "/")):
        owner, repository, file = name.split("/")
        return Path(hf_hub_download(f"{owner}/{repository}", file, **hub))
    return _file_of(source, name, hub)


def _add_on(file: Path) -> dict[str, Tensor]:
    """Return the tensors of an add-on for substeps."""
    try:
        tensors = load_file(file)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{file} is missing or damaged ({error}); copy or download it again, or set substeps to 1 in config.json"
        ) from None
    refuse_not_finite(tensors, str(file))
    return tensors


@dataclass(frozen=True, kw_only=True)
class UNetConfig:
    """The settings of a `UNet`. The defaults are the architecture of the paper.

    Attributes:
        width: channels of the first level.
        multipliers: channels of each level, as multiples of `width`; every level but the last halves the size.
        blocks: residual blocks per level on the way down (one more per level on the way up).
        attention_resolutions: sizes in pixels, for an input of `image_size`, at which blocks have attention.
        image_size: side of the pictures the net is meant for; only `attention_resolutions` refers to it.
        dropout: probability of dropping an activation inside a residual block, 0 ≤ dropout < 1.
        norm_groups: groups of every GroupNorm; a divisor of `width`.
        patch_size: pixels per side folded into channels before the first level (1: none).
        noise_level_scale: factor on the noise level before its embedding (1 in SR3's own files).
        local_variance: whether the last convolution also predicts a variance for each value of x_0, and the linear
            estimate under that variance is added to the output (see `linear_estimate`). It spares a small net with
            large patches from passing the noise of smooth areas through its few channels.
        prediction: "eps", the noise, or "v" = √ᾱ·eps - √(1-ᾱ)·x_0.
        target: meaning of x_0: "image", hr itself, or "residual", `residual_scale`·(hr - lr_up).
        residual_scale: factor on the residual.
        predictor: file of the super-resolution net whose picture is the condition lr_up: its name inside the
            checkpoint's folder, a path, or OWNER/NAME/FILE on the Hub; None: the condition is the bicubic enlargement.
        substeps: the most steps whose work one forward can do (`ADD_ON` holds the weights for it); 1: a plain network.
        scale: factor by which the net enlarges a picture.
        diffusion_steps: T of the cosine schedule.
        coarse_steps: default S of the coarse stage; N = T / S. This setting and those below are defaults for sampling;
            the net itself does not depend on them, and only keeps them in `settings`.
        coarse_sampler: default sampler of the coarse stage, see `ddpm.samplers.coarse_eta`.
        start: default diffusion step at which the fine chain begins, 1 … N (None: N).
        levels: default schedule for enlarging, in any form that `ddpm.schedule.as_schedule` takes; None: the coarse and
            fine stages of the paper.
        fine_sampler: sampler of `levels`, see `ddpm.samplers.coarse_eta`.

    Raises:
        ConfigError: a setting is out of range.
    """

    width: int = 64
    multipliers: Sequence[int] = (1, 2, 4, 8, 8)
    blocks: int = 2
    attention_resolutions: Sequence[int] = (16,)
    image_size: int = 128
    dropout: float = 0.2
    norm_groups: int = 32
    patch_size: int = 1
    noise_level_scale: float = 1.0
    local_variance: bool = False
    prediction: str = "eps"
    target: str = "image"
    residual_scale: float = 4.0
    predictor: str | None = None
    substeps: int = 1
    scale: int = 4
    diffusion_steps: int = 100
    coarse_steps: int = 10
    coarse_sampler: str = "ddpm"
    start: int | None = None
    levels: str | Sequence[int] | None = None
    fine_sampler: str = "ddim"

    def __post_init__(self) -> None:
        # the architecture
        whole = "width", "blocks", "image_size", "norm_groups", "patch_size"
        check_whole(**{name: getattr(self, name) for name in whole})
        check_most(MOST_BLOCKS, blocks=self.blocks, patch_size=self.patch_size)
        for name in ("multipliers", "attention_resolutions"):
            numbers = getattr(self, name)
            if not isinstance(numbers, list | tuple) or not all(is_whole(number) and number >= 1 for number in numbers):
                raise ConfigError(f"{name} must be a list of whole numbers of at least 1, got {shown(numbers)}")
        if not 1 <= len(self.multipliers) <= MOST_LEVELS:
            raise ConfigError(f"multipliers must name 1 … {MOST_LEVELS} levels, got {len(self.multipliers)}")
        if not isinstance(self.dropout, int | float) or not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout must be a number of at least 0 and below 1, got {shown(self.dropout)}")
        if self.width % 2 or self.width % self.norm_groups:
            raise ConfigError(
                f"width must be even and divisible by norm_groups, got width {shown(self.width)} and norm_groups "
                f"{shown(self.norm_groups)}"
            )
        # the meaning of input and output
        check_one_of(("eps", "v"), prediction=self.prediction)
        check_one_of(("image", "residual"), target=self.target)
        check_whole(scale=self.scale, substeps=self.substeps)
        check_most(MOST_TIMES, scale=self.scale)
        check_most(MOST_SUBSTEPS, substeps=self.substeps)
        check_positive(noise_level_scale=self.noise_level_scale, residual_scale=self.residual_scale)
        if self.substeps > 1 and self.prediction != "v":
            raise ConfigError(f"substeps need a network that predicts v, got prediction {self.prediction!r}")
        if not isinstance(self.local_variance, bool):
            raise ConfigError(f"local_variance must be true or false, got {shown(self.local_variance)}")
        if self.predictor is not None and not (isinstance(self.predictor, str) and self.predictor):
            raise ConfigError(f"predictor must be the name of a file, got {shown(self.predictor)}")
        # the defaults for sampling
        check_whole(diffusion_steps=self.diffusion_steps, coarse_steps=self.coarse_steps)
        check_most(LONGEST, diffusion_steps=self.diffusion_steps)
        N, left = divmod(self.diffusion_steps, self.coarse_steps)
        if left:
            raise ConfigError(
                f"coarse_steps must divide the {self.diffusion_steps} diffusion_steps, got {self.coarse_steps}"
            )
        if self.start is not None and not (is_whole(self.start) and 1 <= self.start <= N):
            raise ConfigError(f"start must be a whole number in 1 … {N}, got {shown(self.start)}")
        if self.levels is not None:
            schedule = as_schedule(self.levels)
            check_most(LONGEST, levels=schedule.length)
            check_most(self.substeps, **{"substeps of levels": max(schedule.substeps)})
        for name in ("coarse_sampler", "fine_sampler"):
            coarse_eta(getattr(self, name), name)  # refuses unknown samplers


class UNet(
    nn.Module,
    NoiseLevelDenoiser,
    PyTorchModelHubMixin,
    library_name="skipdiff",
    tags=["super-resolution", "diffusion"],
    license="mit",
):
    """The UNet of SR3; its configuration holds everything that a sampler needs.

    `UNet.from_pretrained(DIR_OR_HUB_ID)` reads `config.json` and `model.safetensors`, whose tensors must be exactly
    those of the net; `save_pretrained(DIR)` writes them.

    Args:
        settings: the attributes of `UNetConfig`.

    Raises:
        ConfigError: a setting is unknown or out of range.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        known = sorted(each.name for each in fields(UNetConfig))
        if unknown := sorted(settings.keys() - set(known)):
            raise ConfigError(f"unknown UNet setting {', '.join(unknown)}; known are {', '.join(known)}")
        config = UNetConfig(**settings)
        self._hub_mixin_config = {name: getattr(config, name) for name in known}
        self.prediction = config.prediction
        self.target = config.target
        self.residual_scale = config.residual_scale
        self.scale = config.scale
        self.substeps = config.substeps
        self.diffusion_steps = config.diffusion_steps
        self.patch_size = config.patch_size
        self.local_variance = config.local_variance
        # a list hides the predictor from torch: its weights are in another file, and not part of this net's state
        self._predictor: list[Predictor] = []
        self._jumps: list[UNet] = []
        # only the network of the jumps has an embedding, see `jump_network`
        self.jump: JumpEmbedding | None = None
        # Sides of an input must be multiples of this.
        self.multiple = config.patch_size * 2 ** (len(config.multipliers) - 1)

        try:
            self._build(config)
        except (RuntimeError, MemoryError, OverflowError, TypeError) as error:
            raise ConfigError(
                "a net of these settings does not fit into memory "
                f"({first_line(error)}); lower width, multipliers or blocks"
            ) from None

    def _build(self, config: UNetConfig) -> None:
        """Make the layers."""
        width, last = config.width, len(config.multipliers) - 1

        def block(channels_in: int, channels_out: int, attend: bool) -> Block:
            return Block(channels_in, channels_out, width, config.norm_groups, config.dropout, attend)

        pixels = config.patch_size**2
        resolution = config.image_size // config.patch_size
        channels = width
        self.embedding = NoiseLevelEmbedding(width, config.noise_level_scale)
        self.first = nn.Conv2d(6 * pixels, width, 3, padding=1)
        skips = [width]
        self.down = nn.ModuleList()
        for level, multiplier in enumerate(config.multipliers):
            for _ in range(config.blocks):
                self.down.append(block(channels, width * multiplier, resolution in config.attention_resolutions))
                channels = width * multiplier
                skips.append(channels)
            if level < last:
                self.down.append(nn.Conv2d(channels, channels, 3, stride=2, padding=1))
                skips.append(channels)
                resolution //= 2
        self.middle = nn.ModuleList([block(channels, channels, True), block(channels, channels, False)])
        self.up = nn.ModuleList()
        for level, multiplier in reversed(list(enumerate(config.multipliers))):
            for _ in range(config.blocks + 1):
                attend = resolution in config.attention_resolutions
                self.up.append(block(channels + skips.pop(), width * multiplier, attend))
                channels = width * multiplier
            if level > 0:
                self.up.append(Upsample(channels))
                resolution *= 2
        self.last_norm = nn.GroupNorm(config.norm_groups, channels)
        self.last = nn.Conv2d(channels, (6 if config.local_variance else 3) * pixels, 3, padding=1)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @classmethod
    def _from_pretrained(cls, *, model_id: str, map_location: str = "cpu", **settings: Any) -> "UNet":
        """Build the net and load its weights; the mixin's method leaves missing weights at random values.

        Raises:
            CheckpointError: the file is damaged, or its tensors are not those of the configured net.
        """
        hub = {name: settings.pop(name) for name in HUB}
        for name in ("proxies", "resume_download"):  # older versions of huggingface_hub pass them
            settings.pop(name, None)
        with torch.device("meta"):  # uses no memory, since the settings may be nonsense
            weights = cls(**settings).state_dict()
        file = _file_of(model_id, WEIGHTS, hub)
        try:
            tensors = load_file(file)
        except SafetensorError as error:
            raise CheckpointError(f"{file} is damaged ({error}); copy or download it again") from None
        if mismatch := tensor_mismatch(weights, tensors):
            raise CheckpointError(f"{file} does not fit its config.json: {mismatch}")
        refuse_not_finite(tensors, str(file))
        unet = cls(**settings)
        unet.load_state_dict(tensors)
        if unet.substeps > 1:
            unet.add_substeps(unet.substeps, _add_on(_file_of(model_id, ADD_ON, hub)))
        name = unet.settings["predictor"]
        if name is not None:
            unet.start_from(load_predictor(_predictor_file(model_id, name, hub), unet.scale))
        return unet.eval().to(map_location)

    def _save_pretrained(self, save_directory: Path) -> None:
        """Write the weights, and the predictor's file beside them.

        Raises:
            CheckpointError: a weight is not finite.
        """
        refuse_not_finite(self.state_dict(), "the net")
        super()._save_pretrained(save_directory)
        for predictor in self._predictor:
            predictor.save(save_directory / PREDICTOR)
        for jumps in self._jumps:
            save_file(self._difference(jumps), save_directory / ADD_ON)

    def _apply(self, fn: Any, recurse: bool = True) -> "UNet":
        """Move the net, the predictor and the network of the jumps to another device or precision."""
        for other in (*self._predictor, *self._jumps):
            other._apply(fn, recurse)
        return super()._apply(fn, recurse)

    def jump_network(self) -> "UNet":
        """Return a copy of this network with a new `JumpEmbedding`, whose output is still zero.

        It runs where a forward does the work of more than one step, see `add_substeps`.
        """
        jumps = UNet(**{**self.settings, "predictor": None, "substeps": 1, "levels": None})
        jumps.load_state_dict(self.state_dict())
        jumps.jump = JumpEmbedding(int(self.settings["width"]))
        return jumps.to(next(self.parameters()).device)

    def add_substeps(self, most: int, add_on: "Mapping[str, Tensor] | UNet") -> None:
        """Let a forward do the work of up to `most` steps. With one substep the output stays the same, bit for bit.

        Args:
            most: largest number of substeps.
            add_on: the network of the jumps, or the tensors in which it differs from this one, including those of
                `jump`.

        Raises:
            CheckpointError: the tensors do not fit the network.
        """
        if isinstance(add_on, UNet):
            jumps = add_on
        else:
            jumps = self.jump_network()
            weights = {**self.state_dict(), **add_on}
            if mismatch := tensor_mismatch(jumps.state_dict(), weights):
                raise CheckpointError(f"the substeps do not fit the network: {mismatch}")
            jumps.load_state_dict(weights)
            jumps.eval().requires_grad_(False)
        assert isinstance(self._hub_mixin_config, dict)
        self._hub_mixin_config["substeps"] = self.substeps = most
        self._jumps = [jumps]

    def _difference(self, jumps: "UNet") -> dict[str, Tensor]:
        """Return the tensors in which the network of the jumps differs from this one."""
        own = self.state_dict()
        return {
            name: tensor.contiguous()
            for name, tensor in jumps.state_dict().items()
            if name not in own or not torch.equal(tensor, own[name])
        }

    @property
    def predictor(self) -> Predictor | None:
        """The net whose picture is the condition; None if the condition is the bicubic enlargement."""
        return self._predictor[0] if self._predictor else None

    def start_from(self, predictor: Predictor | None) -> None:
        """Take the condition from a predictor, or from bicubic enlargement (None).

        Raises:
            ConfigError: the predictor enlarges by another factor.
        """
        if predictor is not None and predictor.scale != self.scale:
            raise ConfigError(f"the predictor enlarges {predictor.scale} times, but the net {self.scale} times")
        assert isinstance(self._hub_mixin_config, dict)
        self._hub_mixin_config["predictor"] = None if predictor is None else PREDICTOR
        self._predictor = [] if predictor is None else [predictor]

    def condition(self, lr_image: Tensor) -> Tensor:
        """Return the condition `lr_up` of low-resolution pictures, which is an input of the net.

        Args:
            lr_image: low-resolution pictures, (B, 3, h, w) in [-1, 1].

        Returns:
            The predictor's picture, see `Predictor.condition`, or the bicubic enlargement if there is none; (B, 3,
            scale·h, scale·w) in [-1, 1].
        """
        if self.settings["predictor"] is not None and not self._predictor:
            raise ConfigError("the net needs its predictor, which was not loaded; load the net with load_unet")
        return self._predictor[0].condition(lr_image) if self._predictor else upsample(lr_image, self.scale)

    @property
    def settings(self) -> dict[str, Any]:
        """The arguments of the net, including defaults."""
        assert isinstance(self._hub_mixin_config, dict)
        return dict(self._hub_mixin_config)

    def forward(
        self,
        lr_up: Tensor,
        x_t: Tensor,
        noise_level: Tensor,
        to_level: Tensor | None = None,
        substeps: Tensor | None = None,
    ) -> Tensor:
        """Predict eps or v, or with substeps the v of a step that arrives where several steps would.

        Args:
            lr_up: condition, (B, 3, H, W) in [-1, 1], see `condition`; H and W divisible by `multiple`.
            x_t: latent at diffusion step t, (B, 3, H, W).
            noise_level: √ᾱ_t, (B,), in (0, 1].
            to_level: √ᾱ_s of the level that the next step goes to, (B,), above the noise level; needed with substeps.
            substeps: number of even DDIM steps whose work each forward does, (B,), in 1 … `substeps`; None: 1 each.

        Returns:
            The prediction named by `prediction`, (B, 3, H, W), unbounded.

        Raises:
            ConfigError: the network has learnt fewer substeps.
        """
        embedding = self.embedding(noise_level)
        if substeps is not None:
            assert to_level is not None, "substeps are those of a step between two levels"
            if self.jump is None:
                return self._with_substeps(lr_up, x_t, noise_level, to_level, substeps)
            embedding = embedding + self.jump(noise_level.arccos() - to_level.arccos(), substeps)
        x = torch.cat([lr_up, x_t], dim=1)
        if self.patch_size > 1:
            x = F.pixel_unshuffle(x, self.patch_size)
        x = self.first(x.contiguous(memory_format=torch.channels_last))
        skips = [x]
        for layer in self.down:
            x = layer(x, embedding) if isinstance(layer, Block) else layer(x)
            skips.append(x)
        for layer in self.middle:
            x = layer(x, embedding)
        for layer in self.up:
            x = layer(torch.cat([x, skips.pop()], dim=1), embedding) if isinstance(layer, Block) else layer(x)
        x = self.last(F.silu(self.last_norm(x), inplace=True))
        if self.patch_size > 1:
            x = F.pixel_shuffle(x, self.patch_size)
        if self.local_variance:
            x, log_variance = x.chunk(2, dim=1)
            x = x + linear_estimate(self.prediction, x_t, noise_level, log_variance)
        return x

    def _with_substeps(
        self, lr_up: Tensor, x_t: Tensor, noise_level: Tensor, to_level: Tensor, substeps: Tensor
    ) -> Tensor:
        """Run the plain network for the members with one substep, and that of the jumps for the others."""
        most = substeps.max().item()
        if most > self.substeps:
            raise ConfigError(
                f"a forward of this network does the work of at most {self.substeps} steps, got {most:g} substeps"
                + ("; train them with `skipdiff train-substeps`" if self.substeps == 1 else "")
            )
        several = substeps > 1
        if several.all():
            return self._jumps[0](lr_up, x_t, noise_level, to_level, substeps)
        out = torch.empty_like(x_t)
        out[~several] = self(lr_up[~several], x_t[~several], noise_level[~several])
        if several.any():
            own = (each[several] for each in (lr_up, x_t, noise_level, to_level, substeps))
            out[several] = self._jumps[0](*own)
        return out
