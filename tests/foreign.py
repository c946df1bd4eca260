"""Small random models in the format of diffusers, and a denoiser of other people's."""

import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ddpm.nets.denoiser import AlphaBar, Denoiser, Estimate
from ddpm.schedule import FloatArray
from ddpm.util.packages import ensure_torchvision

ensure_torchvision()

from diffusers import DDIMScheduler, DDPMScheduler  # noqa: E402
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer  # noqa: E402

# whose methods mypy does not see
DIFFUSERS: Any = importlib.import_module("diffusers")

SCALED_LINEAR = {"beta_start": 0.0015, "beta_end": 0.0155, "beta_schedule": "scaled_linear"}


def concat_unet() -> Any:
    """A network in pixel space, of 6 channels in and 3 out."""
    torch.manual_seed(0)
    return DIFFUSERS.UNet2DModel(
        sample_size=16, in_channels=6, out_channels=3, layers_per_block=1, block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=4, attention_head_dim=4,
    ).eval()  # fmt: skip


def save_concat(folder: Path, scheduler: Any) -> Path:
    """A folder with such a network and its scheduler."""
    concat_unet().save_pretrained(folder)
    scheduler.save_pretrained(folder)
    return folder


def decoder_settings() -> dict[str, Any]:
    """Of a decoder that enlarges four times."""
    return {
        "block_out_channels": (8, 8, 16), "layers_per_block": 1, "norm_num_groups": 4,
        "down_block_types": ("DownEncoderBlock2D",) * 3, "up_block_types": ("UpDecoderBlock2D",) * 3,
    }  # fmt: skip


def latent_pipeline(scheduler: Any = None) -> Any:
    """The pipeline of latent diffusion for super-resolution."""
    unet = concat_unet()
    torch.manual_seed(1)
    decoder = DIFFUSERS.VQModel(latent_channels=3, num_vq_embeddings=64, **decoder_settings()).eval()
    scheduler = scheduler or DDIMScheduler(clip_sample=False, **SCALED_LINEAR)
    pipeline = DIFFUSERS.LDMSuperResolutionPipeline(decoder, unet, scheduler)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def upscale_pipeline(folder: Path, scheduler: Any = None) -> Any:
    """The upscaling pipeline of Stable Diffusion; the folder is for the files of its tokenizer."""
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    folder.mkdir(exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    tokenizer = CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=16)
    torch.manual_seed(2)
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(words), hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
            max_position_embeddings=16, bos_token_id=0, eos_token_id=1,
        )
    ).eval()  # fmt: skip
    unet = DIFFUSERS.UNet2DConditionModel(
        sample_size=16, in_channels=7, out_channels=4, layers_per_block=1, block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=4, cross_attention_dim=16, attention_head_dim=4, num_class_embeds=1000,
    ).eval()  # fmt: skip
    decoder = DIFFUSERS.AutoencoderKL(latent_channels=4, scaling_factor=0.08333, **decoder_settings()).eval()
    scheduler = scheduler or DDIMScheduler(
        prediction_type="v_prediction", clip_sample=False, set_alpha_to_one=False, steps_offset=1
    )
    pipeline = DIFFUSERS.StableDiffusionUpscalePipeline(decoder, text, tokenizer, unet, DDPMScheduler(), scheduler)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


class Smoother(Denoiser):
    """A denoiser in pixel space that is no network of ours: it knows T levels, and its estimate is a blur."""

    scale, multiple = 2, 4

    def __init__(self, T: int = 60) -> None:
        self.alphas_cumprod: FloatArray = np.concatenate([[1.0], np.cumprod(1 - np.linspace(0.001, 0.15, T))])
        self.network = nn.AvgPool2d(3, 1, 1)

    def predict(self, x: Tensor, alpha_bar: AlphaBar, condition: Tensor) -> Estimate:
        """See `Denoiser.predict`."""
        a = torch.as_tensor(alpha_bar, dtype=x.dtype).reshape(-1, 1, 1, 1)
        x0 = 0.5 * self.network(condition) + 0.5 * torch.tanh(x)
        return x0, (x - a.sqrt() * x0) / (1 - a).sqrt()
