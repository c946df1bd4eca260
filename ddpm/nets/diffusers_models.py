"""Denoisers from diffusers: its two pipelines that enlarge pictures, and UNets with the enlarged picture as input.

Models are read from folders in the format of diffusers, which is also that of the Hub. diffusers is imported when a
model is loaded.
"""

import copy
import json
import logging
import sys
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from importlib import import_module
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import numpy as np
import torch
from torch import Tensor, nn

from ddpm.nets.denoiser import AlphaBar, Estimate, NetworkDenoiser, Step, coefficient, per_member
from ddpm.nets.predictor import refuse_not_finite
from ddpm.noise import Stage, keyed_noise
from ddpm.schedule import FloatArray
from ddpm.util.checks import check_one_of, shown
from ddpm.util.errors import CheckpointError, ConfigError, first_line
from ddpm.util.files import read_json, read_settings
from ddpm.util.packages import ensure_torchvision, package

INDEX, CONFIG, SCHEDULER = "model_index.json", "config.json", "scheduler_config.json"
LATENT, UPSCALE = "LDMSuperResolutionPipeline", "StableDiffusionUpscalePipeline"
EXPECTED = f"expected {LATENT}, {UPSCALE}, or a UNet2DModel that is given the enlarged picture beside x_t"
# Schedulers of variance-preserving models, whose schedule is one of betas.
SCHEDULERS = frozenset({
    "DDIMScheduler", "DDIMParallelScheduler", "DDPMScheduler", "DDPMParallelScheduler", "PNDMScheduler",
    "DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler", "DEISMultistepScheduler",
    "UniPCMultistepScheduler", "TCDScheduler", "LCMScheduler",
})  # fmt: skip
# Schedulers that keep latents in another unit: they divide the input of the network by √(σ² + 1) = 1/√ᾱ.
SCALING = frozenset({
    "EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler", "LMSDiscreteScheduler", "HeunDiscreteScheduler",
    "KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler", "DPMSolverSDEScheduler",
})  # fmt: skip
# diffusers' names of predictions, and ours.
PREDICTIONS = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}
SPACINGS = ("leading", "trailing", "linspace")
# The upscaling pipeline divides latents by this factor and ignores the one in its decoder's configuration.
LATENT_FACTOR = 0.08333
# Names of weights without their ending, in diffusers and in transformers, and the endings of pickles.
STEMS, PICKLES = ("diffusion_pytorch_model", "model", "pytorch_model"), (".bin", ".pt", ".pth", ".ckpt")
# The necessary parts of a pipeline: folder → file of its configuration.
PARTS = {
    LATENT: {"unet": CONFIG, "vqvae": CONFIG, "scheduler": SCHEDULER},
    UPSCALE: {
        "unet": CONFIG, "vae": CONFIG, "scheduler": SCHEDULER, "low_res_scheduler": SCHEDULER, "text_encoder": CONFIG,
        "tokenizer": "tokenizer_config.json",
    },
}  # fmt: skip


def split_settings(source: str) -> tuple[str, dict[str, str]]:
    """Return the name of a model and the settings behind it.

    Args:
        source: NAME, or NAME?SETTING=VALUE&…, encoded as in the address of a web page: + or %20 for a space, %26 for &.

    Raises:
        ConfigError: the text behind ? does not consist of settings.
    """
    name, mark, text = source.partition("?")
    if not mark:
        return name, {}
    try:
        return name, dict(parse_qsl(text, keep_blank_values=True, strict_parsing=True))
    except ValueError:
        raise ConfigError(f"settings must be written as in {name}?guidance=4&prompt=a+cat, got {source!r}") from None


@dataclass(frozen=True)
class DiffusersSettings:
    """Settings of a model that are not in its folder of diffusers.

    Attributes:
        scale: factor by which a UNet2DModel enlarges; a pipeline defines its factor.
        condition_first: whether the enlarged picture stands before x_t in the input of a UNet2DModel.
        spacing: choice of the t of a schedule of few steps, "leading", "trailing" or "linspace"; None: the one in the
            model's configuration.
        prompt: a description of the picture, for the upscaling pipeline.
        guidance: factor of classifier-free guidance; 1: none.
        noise_level: t of the noise that the upscaling pipeline adds to the low-resolution picture.
        trust_pickle: whether weights may be pickles, which can run any code.

    Raises:
        ConfigError: a setting is out of range.
    """

    scale: int | None = None
    condition_first: bool = False
    spacing: str | None = None
    prompt: str = ""
    guidance: float = 1.0
    noise_level: int = 20
    trust_pickle: bool = False

    def __post_init__(self) -> None:
        if self.scale is not None and self.scale < 1:
            raise ConfigError(f"scale must be a whole number of at least 1, got {self.scale}")
        if not 1 <= self.guidance < 1000:
            raise ConfigError(f"guidance must be a number of at least 1, got {self.guidance:g}")
        if self.guidance > 1 and not self.prompt:
            raise ConfigError(
                f"guidance {self.guidance:g} needs a text to guide to, and none is given; add prompt=TEXT, or leave "
                "guidance out"
            )
        if self.noise_level < 0:
            raise ConfigError(f"noise_level must be a whole number of at least 0, got {self.noise_level}")
        check_one_of((None, *SPACINGS), spacing=self.spacing)

    @classmethod
    def parse(cls, settings: Mapping[str, str]) -> "DiffusersSettings":
        """Return the settings that are given as texts.

        Raises:
            ConfigError: a setting is unknown, not a number, or out of range.
        """
        kinds: dict[str, Any] = {
            "scale": int, "condition_first": _flag, "spacing": str, "prompt": str, "guidance": float,
            "noise_level": int, "trust_pickle": _flag,
        }  # fmt: skip
        assert kinds.keys() == {each.name for each in fields(cls)}
        unknown = sorted(settings.keys() - kinds.keys())
        if unknown:
            raise ConfigError(f"unknown setting {', '.join(unknown)} of a model; known are {', '.join(kinds)}")
        found = {}
        for name, text in settings.items():
            try:
                found[name] = kinds[name](text)
            except ValueError:
                raise ConfigError(
                    f"the setting {name} of a model must be {_MEANT[kinds[name]]}, got {text!r}"
                ) from None
        return cls(**found)


def _flag(text: str) -> bool:
    if text.lower() not in ("true", "false", "1", "0"):
        raise ValueError
    return text.lower() in ("true", "1")


_MEANT = {int: "a whole number", float: "a number", _flag: "true or false", str: "a text"}


# --- the denoisers ---


class DiffusersDenoiser(NetworkDenoiser):
    """A UNet of diffusers, which knows a discrete t.

    Args:
        network: the UNet, in inference mode.
        scheduler: configuration of the model's scheduler.
        spacing: as in `DiffusersSettings`.

    Raises:
        ConfigError: the model is not variance-preserving, or predicts something other than ε, v or x_0.
    """

    def __init__(self, network: nn.Module, scheduler: Mapping[str, Any], spacing: str | None = None) -> None:
        self.network = network
        self.sampler = _ddim(scheduler, spacing)
        config: Any = self.sampler.config
        self.prediction = PREDICTIONS[config.prediction_type]
        self.clip = float(config.clip_sample_range) if config.clip_sample else None
        self.scales_input = scheduler.get("_class_name") in SCALING
        # part of the fingerprint
        self.scheduler = json.dumps({**config}, sort_keys=True, default=str)
        alphas = self.sampler.alphas_cumprod.double().numpy()
        self.alphas_cumprod = np.concatenate([[1.0], alphas])
        self.multiple = 2 ** (len(network.config.block_out_channels) - 1)  # type: ignore[union-attr, arg-type]

    def schedule(self, steps: int) -> FloatArray:
        """Return the levels that DDIM of diffusers visits in this number of steps; see `Denoiser.schedule`."""
        assert self.alphas_cumprod is not None
        T = len(self.alphas_cumprod) - 1
        sampler = copy.copy(self.sampler)
        if not 1 <= steps <= T:
            raise ConfigError(f"the network knows {T} noise levels, got a schedule of {steps} steps; take at most {T}")
        sampler.set_timesteps(steps)
        t = sampler.timesteps.numpy()[::-1]
        if t[-1] >= T:
            raise ConfigError(f"a schedule of {steps} steps goes beyond the network's {T} noise levels; take fewer")
        last = 1.0 if sampler.config.set_alpha_to_one else self.alphas_cumprod[1]
        return np.concatenate([[last], self.alphas_cumprod[t + 1]])

    def _t(self, alpha_bar: AlphaBar, x: Tensor) -> Tensor:
        """Return the t with the nearest level, counted from 0, (B,)."""
        assert self.alphas_cumprod is not None
        distance = np.abs(self.alphas_cumprod[1:] - np.asarray(alpha_bar)[..., None])
        return torch.as_tensor(np.broadcast_to(distance.argmin(axis=-1), len(x)).copy(), device=x.device)

    def output(
        self, x: Tensor, alpha_bar: AlphaBar, condition: Tensor, jump: tuple[AlphaBar, Step] | None = None
    ) -> Tensor:
        """See `NetworkDenoiser.output`."""
        return self._output(x, self._t(alpha_bar, x), condition, alpha_bar)

    @abstractmethod
    def _output(self, x: Tensor, t: Tensor, condition: Tensor, alpha_bar: AlphaBar) -> Tensor:
        """Return the prediction of the network at t, (B,), counted from 0."""

    def estimate(self, output: Tensor, x: Tensor, alpha_bar: AlphaBar, condition: Tensor) -> Estimate:
        """Return x_0, clipped if the model's scheduler clips it, and ε, which is not clipped."""
        signal, sigma = coefficient(np.sqrt(alpha_bar), x), coefficient(np.sqrt(1 - np.asarray(alpha_bar)), x)
        if self.prediction == "eps":
            x0, eps = (x - output * sigma) / signal, output
        elif self.prediction == "v":
            x0, eps = x * signal - output * sigma, output * signal + x * sigma
        else:
            x0, eps = output, (x - output * signal) / sigma
        return (x0 if self.clip is None else x0.clamp_(-self.clip, self.clip)), eps


class ConcatDenoiser(DiffusersDenoiser):
    """A `UNet2DModel` in pixel space whose input is x_t and the bicubic enlargement.

    Args:
        network: the UNet.
        scheduler: configuration of its scheduler.
        settings: `scale`, `condition_first` and `spacing`.

    Raises:
        ConfigError: the scale is missing; see also `DiffusersDenoiser`.
    """

    def __init__(self, network: nn.Module, scheduler: Mapping[str, Any], settings: DiffusersSettings) -> None:
        super().__init__(network, scheduler, settings.spacing)
        if settings.scale is None:
            raise ConfigError("a UNet2DModel does not say how many times it enlarges; add it, as in FOLDER?scale=4")
        self.scale, self.condition_first = settings.scale, settings.condition_first

    def _output(self, x: Tensor, t: Tensor, condition: Tensor, alpha_bar: AlphaBar) -> Tensor:
        parts = [condition, x] if self.condition_first else [x, condition]
        return self.network(torch.cat(parts, dim=1), t, return_dict=False)[0]


class LatentDenoiser(DiffusersDenoiser):
    """`LDMSuperResolutionPipeline`: the input is a latent and the low-resolution picture of its size; a VQ decoder.

    Args:
        network: its UNet.
        decoder: its `vqvae`.
        scheduler: configuration of its scheduler.
        settings: `spacing`.

    Raises:
        ConfigError: see `DiffusersDenoiser`.
    """

    def __init__(
        self, network: nn.Module, decoder: nn.Module, scheduler: Mapping[str, Any], settings: DiffusersSettings
    ) -> None:
        super().__init__(network, scheduler, settings.spacing)
        self.decoder = decoder
        self.scale = 2 ** (len(decoder.config.block_out_channels) - 1)  # type: ignore[union-attr, arg-type]

    def condition(self, lr_image: Tensor) -> Tensor:
        """Return the low-resolution pictures."""
        return lr_image

    def latent_shape(self, lr_image: Tensor) -> tuple[int, int, int, int]:
        """Return the shape of latents, which have the sides of the low-resolution pictures."""
        batch, _, height, width = lr_image.shape
        return batch, int(self.decoder.config.latent_channels), height, width  # type: ignore[union-attr, arg-type]

    def _output(self, x: Tensor, t: Tensor, condition: Tensor, alpha_bar: AlphaBar) -> Tensor:
        # the pipeline lets such schedulers scale the picture together with the latent
        beside = condition * coefficient(np.sqrt(alpha_bar), x) if self.scales_input else condition
        return self.network(torch.cat([x, beside], dim=1), t, return_dict=False)[0]

    def decode(self, latent: Tensor, condition: Tensor) -> Tensor:
        """See `Denoiser.decode`."""
        return self.decoder.decode(latent, return_dict=False)[0].clamp(-1, 1)  # type: ignore[operator]


class UpscaleDenoiser(LatentDenoiser):
    """`StableDiffusionUpscalePipeline`: some noise in the picture, given as a class label; a text; a KL decoder.

    The noise is the same for all pictures of a size, so that a picture and a noise seed fix the result.

    Args:
        network: its UNet.
        decoder: its `vae`.
        scheduler: configuration of its scheduler.
        low_res_scheduler: configuration of the scheduler of the noise in the picture.
        texts: the embedding of the prompt, (1, tokens, C); with guidance preceded by that of the empty text, (2, …).
        settings: `guidance`, `noise_level` and `spacing`.
        most_noise: the largest `noise_level` that the model knows.

    Raises:
        ConfigError: the noise level is out of range; see also `DiffusersDenoiser`.
    """

    def __init__(
        self,
        network: nn.Module,
        decoder: nn.Module,
        scheduler: Mapping[str, Any],
        low_res_scheduler: Mapping[str, Any],
        texts: Tensor,
        settings: DiffusersSettings,
        most_noise: int = 350,
    ) -> None:
        super().__init__(network, decoder, scheduler, settings)
        if settings.noise_level > most_noise:
            raise ConfigError(f"noise_level must be a whole number in 0 … {most_noise}, got {settings.noise_level}")
        self.texts, self.guidance, self.noise_level = texts, settings.guidance, settings.noise_level
        self.forwards_per_call = len(texts)
        self.picture_alpha_bar = float(_ddim(low_res_scheduler, None).alphas_cumprod[settings.noise_level])

    def condition(self, lr_image: Tensor) -> Tensor:
        """Return the low-resolution pictures with some noise."""
        noise = torch.from_numpy(keyed_noise(0, Stage.INITIAL, 0, lr_image.shape[1:])).to(lr_image.device)
        return lr_image * self.picture_alpha_bar**0.5 + noise * (1 - self.picture_alpha_bar) ** 0.5

    def _output(self, x: Tensor, t: Tensor, condition: Tensor, alpha_bar: AlphaBar) -> Tensor:
        count = len(self.texts)
        out = self.network(
            torch.cat([x, condition], dim=1).repeat(count, 1, 1, 1),
            t.repeat(count),
            encoder_hidden_states=self.texts.repeat_interleave(len(x), dim=0),
            class_labels=per_member(self.noise_level, x).long().repeat(count),
            return_dict=False,
        )[0]
        if count == 1:
            return out
        plain, guided = out.chunk(2)
        return plain + self.guidance * (guided - plain)

    def decode(self, latent: Tensor, condition: Tensor) -> Tensor:
        """See `Denoiser.decode`."""
        return super().decode(latent / LATENT_FACTOR, condition)


def _ddim(config: Mapping[str, Any], spacing: str | None) -> Any:
    """Return DDIM of diffusers with the schedule of any variance-preserving scheduler.

    Raises:
        ConfigError: the scheduler is of another kind.
    """
    diffusers = _package("diffusers")
    name = config.get("_class_name")
    if name not in SCHEDULERS | SCALING or not hasattr(diffusers, str(name)):
        raise ConfigError(
            f"the model's scheduler {name} is not known as one of a variance-preserving diffusion model with a "
            "schedule of betas; models of other noise processes, such as ResShift, EDM and flow matching, do not fit"
        )
    if config.get("use_flow_sigmas") or config.get("prediction_type", "epsilon") not in PREDICTIONS:
        raise ConfigError(
            f"the network must predict {', '.join(PREDICTIONS)}, got {shown(config.get('prediction_type'))} in the "
            f"scheduler's configuration"
        )
    if config.get("thresholding"):
        raise ConfigError("the scheduler thresholds x_0 by its quantiles, which is not supported; set it to false")
    try:
        with _quiet():
            own = getattr(diffusers, str(name)).from_config(dict(config)).config  # with the defaults of its class
            settings = {"clip_sample": False, "set_alpha_to_one": True, **own}
            if spacing is not None:
                settings["timestep_spacing"] = spacing
            return diffusers.DDIMScheduler.from_config(settings)
    except (ValueError, TypeError, NotImplementedError, ImportError) as error:
        raise ConfigError(f"the scheduler's configuration is wrong ({first_line(error)})") from None


# --- reading a folder ---


def is_diffusers(folder: Path) -> bool:
    """Return whether a folder holds a model in the format of diffusers, whole or not."""
    if (folder / INDEX).is_file():
        return True
    try:
        config = read_json(folder / CONFIG)
    except (ConfigError, OSError):
        return False
    return isinstance(config, dict) and "_class_name" in config


def load_diffusers(folder: Path, device: str, settings: Mapping[str, str]) -> DiffusersDenoiser:
    """Return the denoiser of a folder of diffusers, in float32 for inference.

    Args:
        folder: folder of an `LDMSuperResolutionPipeline`, a `StableDiffusionUpscalePipeline`, another pipeline of a
            UNet2DModel and a scheduler, or a UNet2DModel with `scheduler_config.json` beside it.
        device: device of the computation.
        settings: values as texts, by the names of `DiffusersSettings`.

    Raises:
        CheckpointError: the model does not enlarge pictures, or a file is missing or damaged.
        ConfigError: a setting is wrong, diffusers is not installed, or the model is not variance-preserving.
    """
    what = DiffusersSettings.parse(settings)
    index = read_settings(folder / INDEX) if (folder / INDEX).is_file() else {}
    name = index.get("_class_name")
    if name not in PARTS:
        return _load_concat(folder, index, device, what)
    for part, file in PARTS[name].items():
        if not (folder / part / file).is_file():
            raise CheckpointError(f"{folder} is not a whole {name}: it lacks {part}/{file}; download it again")
    scheduler = read_settings(folder / "scheduler" / SCHEDULER)
    _ddim(scheduler, what.spacing)  # refuses wrong settings before weights are read
    kind = "UNet2DModel" if name == LATENT else "UNet2DConditionModel"
    trusted = what.trust_pickle
    network = _network(folder / "unet", kind, device, trusted)
    if name == LATENT:
        with _explained(folder):
            return LatentDenoiser(network, _network(folder / "vqvae", "VQModel", device, trusted), scheduler, what)
    with _explained(folder):
        return UpscaleDenoiser(
            network, _network(folder / "vae", "AutoencoderKL", device, trusted), scheduler,
            read_settings(folder / "low_res_scheduler" / SCHEDULER), _texts(folder, what, device), what,
            int(index.get("max_noise_level") or 350),
        )  # fmt: skip


def _load_concat(folder: Path, index: Mapping[str, Any], device: str, settings: DiffusersSettings) -> ConcatDenoiser:
    """Return the denoiser of a UNet2DModel alone, or of a pipeline that consists of it and a scheduler."""
    unet = folder
    if index:
        parts = {name: part[1] for name, part in index.items() if isinstance(part, list) and len(part) == 2 and part[1]}
        if parts.get("unet") != "UNet2DModel" or parts.keys() != {"unet", "scheduler"}:
            raise CheckpointError(
                f"{folder} is a {index.get('_class_name')}, which does not enlarge pictures in a known way; {EXPECTED}"
            )
        unet = folder / "unet"
    config = read_settings(unet / CONFIG)
    name, channels, out = (config.get(key) for key in ("_class_name", "in_channels", "out_channels"))
    if name != "UNet2DModel":
        raise CheckpointError(f"{folder} holds a {name} without a pipeline; {EXPECTED}")
    if (channels, out) != (6, 3):
        raise CheckpointError(
            f"{folder} has a UNet2DModel with {channels} channels in and {out} out, expected 6 and 3: it has no input "
            "for a low-resolution picture"
        )
    if config.get("time_embedding_type") == "fourier":
        raise ConfigError(f"the network in {folder} takes a standard deviation as input and is not variance-preserving")
    if config.get("class_embed_type") or config.get("num_class_embeds"):
        raise ConfigError(f"the network in {folder} needs a class, which SkipDiff does not have")
    places = [unet / SCHEDULER, folder / "scheduler" / SCHEDULER, unet.parent / "scheduler" / SCHEDULER]
    scheduler = next((place for place in places if place.is_file()), None)
    if scheduler is None:
        raise CheckpointError(
            f"{folder} lacks {SCHEDULER}, which holds the schedule; save the scheduler beside the UNet"
        )
    found = read_settings(scheduler)
    _ddim(found, settings.spacing)
    if settings.scale is None:
        raise ConfigError(f"{folder} does not say how many times it enlarges; add it, as in {folder}?scale=4")
    with _explained(folder):
        return ConcatDenoiser(_network(unet, name, device, settings.trust_pickle), found, settings)


def _weights(folder: Path, trust_pickle: bool) -> dict[str, Any]:
    """Return the arguments of `from_pretrained` for the weights of a folder.

    Raises:
        CheckpointError: there are no weights, or they are a pickle that is not trusted.
    """
    for variant in (None, "fp16"):
        for stem in STEMS:
            middle = f".{variant}" if variant else ""
            names = (f"{stem}{middle}.safetensors", f"{stem}.safetensors.index{middle}.json")
            if any((folder / name).is_file() for name in names):
                return {"use_safetensors": True, "variant": variant}
    pickles = [file.name for file in sorted(folder.glob("*")) if file.suffix in PICKLES]
    if not pickles:
        raise CheckpointError(f"{folder} lacks the weights, {STEMS[0]}.safetensors; download it again")
    if not trust_pickle:
        raise CheckpointError(
            f"the weights {folder / pickles[0]} are a pickle, which can run any code; save them as safetensors, or if "
            "you trust whoever made them, pass --trust-pickle or add ?trust_pickle=true"
        )
    return {"use_safetensors": False}


def _network(folder: Path, name: str, device: str, trust_pickle: bool, library: str = "diffusers") -> Any:
    """Return a network of diffusers or transformers, in float32 for inference."""
    found = read_settings(folder / CONFIG).get("_class_name", name)
    if found != name:
        raise CheckpointError(f"{folder} holds a {found}, expected a {name}")
    kind, how = getattr(_package(library), name), _weights(folder, trust_pickle)
    with _explained(folder):
        network, info = kind.from_pretrained(
            str(folder), torch_dtype=torch.float32, low_cpu_mem_usage=False, local_files_only=True,
            output_loading_info=True, **how,
        )  # fmt: skip
    if info["missing_keys"]:
        raise CheckpointError(
            f"the weights in {folder} do not fit {CONFIG}: they lack {sorted(info['missing_keys'])[0]}"
        )
    refuse_not_finite(network.state_dict(), str(folder))
    return network.eval().requires_grad_(False).to(device)


@torch.no_grad()
def _texts(folder: Path, settings: DiffusersSettings, device: str) -> Tensor:
    """Return the embedding of the prompt, with guidance preceded by that of the empty text; (1 or 2, tokens, C)."""
    encoder = _network(folder / "text_encoder", "CLIPTextModel", device, settings.trust_pickle, "transformers")
    with _explained(folder):
        tokenizer = _package("transformers").CLIPTokenizer.from_pretrained(str(folder / "tokenizer"))
        tokens = tokenizer(
            [*([""] if settings.guidance > 1 else []), settings.prompt], padding="max_length",
            max_length=tokenizer.model_max_length, truncation=True, return_tensors="pt",
        )  # fmt: skip
        mask = tokens.attention_mask.to(device) if getattr(encoder.config, "use_attention_mask", False) else None
        return encoder(tokens.input_ids.to(device), attention_mask=mask)[0].float()


def _package(name: str) -> Any:
    """Return a package of the extra `diffusers`.

    Raises:
        ConfigError: it is not installed.
    """
    ensure_torchvision()
    with _quiet():
        return package(name, "diffusers")


@contextmanager
def _explained(folder: Path) -> Iterator[None]:
    """Turn the errors of diffusers and transformers about damaged files into one line."""
    try:
        with _quiet():
            yield
    except (CheckpointError, ConfigError, MemoryError):
        raise
    except Exception as error:  # they raise nearly anything
        raise CheckpointError(f"{folder} cannot be loaded ({type(error).__name__}: {first_line(error)})") from None


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the progress bars of diffusers and transformers, and their logs below errors."""
    loggers = [logging.getLogger(name) for name in ("diffusers", "transformers")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    bars: Any = import_module("transformers.utils.logging") if "transformers" in sys.modules else None
    if bars is not None:
        bars.disable_progress_bar()
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
        if bars is not None:
            bars.enable_progress_bar()
