"""The command line, `skipdiff`. Heavy imports happen inside the commands, so that `--help` is quick."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from ddpm.errors import SkipDiffError


class Group(click.Group):
    """Turns an input error into one line and exit code 2."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except SkipDiffError as error:
            raise click.UsageError(" ".join(str(error).split())) from None


def _numbers(
    count: int | None = None,
) -> Callable[[click.Context, click.Parameter, str | None], tuple[int, ...] | None]:
    """A callback that parses whole numbers separated by commas."""

    def parse(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[int, ...] | None:
        if value is None:
            return None
        try:
            numbers = tuple(int(part) for part in value.split(","))
        except ValueError:
            raise click.BadParameter(f"expected whole numbers separated by commas, got {value!r}") from None
        if count is not None and len(numbers) != count:
            raise click.BadParameter(f"expected {count} numbers separated by commas, got {value!r}")
        return numbers

    return parse


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.version_option(package_name="skipdiff")
def main() -> None:
    """SkipDiff: learn which denoising steps a diffusion model can skip."""


UNET_OPTIONS = (
    "width", "multipliers", "blocks", "attention_resolutions", "image_size", "dropout", "norm_groups", "patch_size",
    "noise_level_scale", "prediction", "target", "scale", "coarse_steps",
)  # fmt: skip


@main.command("train-ddpm")
@click.option("--images", multiple=True, help="Folder, file or pattern of photographs; may be repeated.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder of the run.")
@click.option("--resume", is_flag=True, help="Go on with the run in --out.")
@click.option("--iterations", type=int, default=10_000, help="Optimizer steps in all.")
@click.option("--batch-size", type=int, default=16, help="Crops per step and process.")
@click.option("--crop", type=int, default=64, help="Side of the random crops, in pixels.")
@click.option("--scale", type=int, default=4, help="How many times the net shall enlarge.")
@click.option("--lr", type=float, default=4e-4, help="Peak learning rate.")
@click.option("--lr-schedule", type=click.Choice(["cosine", "step", "constant"]), default="cosine")
@click.option("--warmup", type=int, default=100, help="Iterations of linear warm-up.")
@click.option("--clip", type=float, default=1.0, help="Largest norm of the gradient.")
@click.option("--ema-decay", type=float, default=0.999, help="Decay of the averaged weights.")
@click.option("--mixed-precision", type=click.Choice(["auto", "no", "fp16", "bf16"]), default="auto")
@click.option("--width", type=int, default=48, help="Channels of the first level (paper: 64).")
@click.option(
    "--multipliers", callback=_numbers(), default="1,2,4", help="Channels of each level over width (paper: 1,2,4,8,8)."
)
@click.option("--blocks", type=int, default=1, help="Residual blocks per level (paper: 2).")
@click.option("--attention-resolutions", callback=_numbers(), default="16", help="Sizes in pixels that attend.")
@click.option("--image-size", type=int, default=128, help="Picture side the attention resolutions refer to.")
@click.option("--dropout", type=float, default=0.0, help="Dropout inside residual blocks (paper: 0.2).")
@click.option("--norm-groups", type=int, default=16, help="Groups of every GroupNorm (SR3: 32).")
@click.option("--patch-size", type=int, default=2, help="Pixels folded into channels, per side (paper: 1).")
@click.option("--noise-level-scale", type=float, default=1000.0, help="Factor on the noise level (SR3: 1).")
@click.option("--prediction", type=click.Choice(["eps", "v"]), default="v", help="What the net predicts (paper: eps).")
@click.option(
    "--target", type=click.Choice(["image", "residual"]), default="residual", help="What is diffused (paper: image)."
)
@click.option("--coarse-steps", type=int, default=10, help="Default S of the checkpoint.")
@click.option("--seed", type=int, default=0)
@click.option("--save-every", type=int, default=500, help="Iterations between checkpoints.")
@click.option("--workers", type=int, default=0, help="Processes that load pictures.")
@click.option("--cache-mb", type=int, default=1024, help="Decoded pictures kept in memory.")
@click.pass_context
def train_ddpm(ctx: click.Context, out: Path, resume: bool, **options: Any) -> None:
    """Train the conditional DDPM on a folder of photographs.

    The weights go to OUT/checkpoint, which every other command takes as --checkpoint. On several GPUs:
    accelerate launch -m agents.cli train-ddpm …
    """
    from ddpm.training import TrainingConfig, resumed_config, train

    if resume:
        given = {k: v for k, v in options.items() if ctx.get_parameter_source(k) is ParameterSource.COMMANDLINE}
        config = resumed_config(out, given)
    elif not options["images"]:
        raise click.UsageError("--images is missing: name a folder of photographs to train on")
    else:
        unet = {k: options.pop(k) for k in UNET_OPTIONS}
        config = TrainingConfig(unet=unet, **options)
    click.echo(f"checkpoint: {train(config, out, resume)}")


if __name__ == "__main__":
    main()
