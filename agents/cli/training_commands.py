"""The commands that train diffusion networks, predictors and agents, and that import networks of SR3."""

from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import click

from agents.cli.options import (
    EPISODES,
    PLAN,
    absolute_paths,
    episode_settings,
    given_options,
    numbers,
    options_of,
    several,
)
from ddpm.training.configs import DDPMConfig, PredictorConfig, SubstepsConfig, TrainingConfig
from ddpm.util.errors import ConfigError

C = TypeVar("C", bound=TrainingConfig)
# Options of `train-agent` that training on a table has.
ON_TABLE = ("env_id", "algo", "table", "nfe_penalty", "env_steps", "eval_every", "minutes", "overrides", "seed")
# Options that may name files.
PATHS = ("images", "eval_images", "checkpoint", "init", "predictor")


def _checked_training(options: dict[str, Any]) -> dict[str, Any]:
    """Return the options of a new training, with paths that stay valid when it is resumed from another folder."""
    if not options["images"]:
        raise click.UsageError("--images is missing: name a folder of photographs to train on")
    return _settled(options)


def _settled(options: dict[str, Any]) -> dict[str, Any]:
    """Return the options, with paths that stay valid when a run is resumed from another folder."""
    return options | absolute_paths(options, *(name for name in PATHS if name in options))


def _config(kind: type[C], ctx: click.Context, out: Path, resume: bool, options: dict[str, Any]) -> C:
    """Return the settings of a training that begins or is resumed."""
    from ddpm.training.trainer import resumed_config

    if resume:
        return resumed_config(kind, out, _settled(given_options(ctx, options)))
    return kind(**_checked_training(options))


def _lpips(side: int) -> Any:
    """Return LPIPS as a loss of pictures of this side.

    Raises:
        ConfigError: LPIPS does not take pictures of this size.
    """
    from skipdiff_env.metrics import make_lpips, make_metric

    make_metric("lpips").check_size(side, side)
    return make_lpips()


RUN = several(
    click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder of the run."),
    click.option("--resume", is_flag=True, help="Continue the run in --out."),
)


@click.command("train-ddpm")
@RUN
@options_of(DDPMConfig, leave_out=["unet"])
@click.option("--scale", type=int, default=4, help="Factor by which the network enlarges.")
@click.option("--width", type=int, default=96, help="Channels of the first level (paper: 64).")
@click.option(
    "--multipliers",
    callback=numbers(),
    default="1,1,1",
    help="Channels of each level, as multiples of the width (paper: 1,2,4,8,8).",
)
@click.option("--blocks", type=int, default=1, help="Residual blocks per level (paper: 2).")
@click.option(
    "--attention-resolutions",
    callback=numbers(),
    default="16",
    help="Sizes in pixels at which the network has attention.",
)
@click.option(
    "--image-size", type=int, default=128, help="Side of the pictures to which the attention resolutions refer."
)
@click.option("--dropout", type=float, default=0.0, help="Dropout inside residual blocks (paper: 0.2).")
@click.option("--norm-groups", type=int, default=16, help="Groups of every GroupNorm (SR3: 32).")
@click.option("--patch-size", type=int, default=4, help="Pixels folded into channels, per side (paper: 1).")
@click.option("--noise-level-scale", type=float, default=1000.0, help="Factor on the noise level (SR3: 1).")
@click.option(
    "--local-variance/--no-local-variance",
    default=True,
    help="Also predict a variance for each value, and add the linear estimate under it (paper: no).",
)
@click.option(
    "--prediction",
    type=click.Choice(["eps", "v"]),
    default="v",
    help="Target of the network's prediction (paper: eps).",
)
@click.option(
    "--target",
    type=click.Choice(["image", "residual"]),
    default="residual",
    help="Picture that is diffused (paper: image).",
)
@click.option("--residual-scale", type=float, default=8.0, help="Factor on the residual, if it is diffused.")
@click.option("--coarse-steps", type=int, default=10, help="Default S of the checkpoint.")
@click.pass_context
def train_ddpm(ctx: click.Context, out: Path, resume: bool, **options: Any) -> None:
    """Train the conditional DDPM on a folder of photographs.

    The weights are written to OUT/checkpoint, which other commands take as --checkpoint. On several GPUs, run
    `accelerate launch -m agents.cli train-ddpm …`, or use torchrun.
    """
    from ddpm.training.trainer import resumed_config
    from ddpm.training.unet import initial_settings, train

    given = given_options(ctx, options)
    if resume:
        config = resumed_config(DDPMConfig, out, _settled(given))
    else:
        options = _checked_training(options)
        unet = {k: options.pop(k) for k in sorted(options.keys() - {each.name for each in fields(DDPMConfig)})}
        if options["init"] is not None:
            unet = initial_settings(options["init"]) | {k: v for k, v in unet.items() if k in given}
        config = DDPMConfig(unet=unet, **options)
    perceptual = _lpips(config.crop) if config.perceptual_weight > 0 else None
    click.echo(f"checkpoint: {train(config, out, resume, perceptual)}")


@click.command("train-predictor")
@RUN
@options_of(PredictorConfig)
@click.pass_context
def train_predictor(ctx: click.Context, out: Path, resume: bool, **options: Any) -> None:
    """Train a predictor (SPAN), the small network whose result `train-ddpm --predictor` takes as the condition.

    The weights are written to OUT/checkpoint/predictor.safetensors.
    """
    from ddpm.training.predictor import train_predictor as train

    click.echo(f"predictor: {train(_config(PredictorConfig, ctx, out, resume, options), out, resume)}")


@click.command("train-substeps")
@RUN
@click.option("--from", "init", default="natural-x4", help="Checkpoint whose network learns substeps.")
@options_of(SubstepsConfig, leave_out=["init"])
@click.pass_context
def train_substeps(ctx: click.Context, out: Path, resume: bool, **options: Any) -> None:
    """Train one forward of a checkpoint's network to do the work of many steps.

    OUT/checkpoint is the checkpoint with the additional file substeps.safetensors. With --eval-images, each save prints
    a table of LPIPS and PSNR for several numbers of forwards and substeps.
    """
    from ddpm.training.substeps import train_substeps as train

    config = _config(SubstepsConfig, ctx, out, resume, options)
    perceptual = _lpips(config.eval_size) if config.eval_images else None
    click.echo(f"checkpoint: {train(config, out, resume, perceptual)}")


@click.command("train-agent")
@RUN
@click.option(
    "--env",
    "env_id",
    default="SkipDiffBanditTable-v0",
    help="Environment. SkipDiffBanditTable-v0, SkipDiffStrideTable-v0 and SkipDiffContinuousTable-v0 need neither "
    "photographs nor a network; SkipDiff-v0, SkipDiffJump-v0, SkipDiffBandit-v0 … need both.",
)
@click.option(
    "--algo",
    default="ppo",
    help="Algorithm: ppo, a2c, dqn, qrdqn or trpo; on a table also maskable-ppo; with a network also recurrent-ppo; on "
    "SkipDiffContinuousTable-v0 also sac and td3. For other algorithms, train with Stable-Baselines3, and write the "
    "agent with `agents.export_agent`.",
)
@click.option(
    "--table",
    help="Another table of the environment: a folder that `tabulate --levels` wrote, or the name of one that ships, "
    "such as photo-x4.",
)
@EPISODES
@PLAN
@click.option(
    "--skip-mode",
    type=click.Choice(["restart", "jump"]),
    help="Effect of SKIP.  [default: that of the agent or the environment]",
)
@click.option(
    "--env-steps",
    type=click.IntRange(min=1),
    help="Number of decisions in the training.  [default: the algorithm's file]",
)
@click.option("--minutes", type=click.FloatRange(min=0, min_open=True), help="Stop after this time.")
@click.option(
    "--crop",
    type=click.Choice(["center", "random"]),
    default="random",
    help="The middle of each photograph, or a new crop for each episode.",
)
@click.option(
    "--noise-seeds", type=click.IntRange(min=0), default=1, help="Number of noises of each crop; 0: no limit."
)
@click.option("--eval-images", multiple=True, help="Photographs to evaluate on.  [default: those of the training]")
@click.option(
    "--eval-noise-seeds",
    type=click.IntRange(min=1),
    default=1,
    help="Number of noises of each picture in the evaluation.",
)
@click.option(
    "--eval-first-seed",
    type=click.IntRange(min=0),
    default=0,
    help="First noise seed of the evaluation; seeds from --noise-seeds on do not occur in training.",
)
@click.option(
    "--eval-every",
    type=click.IntRange(min=1),
    help="Episodes between evaluations.  [default: 400, on a table a fortieth of the training]",
)
@click.option(
    "--oracle/--no-oracle",
    default=True,
    help="Compare the agent with fixed schedules in each evaluation, which takes many forwards with --first-step.",
)
@click.option("--cache-mb", type=click.FloatRange(min=0), help="Memory for latents.  [default: as much as they need]")
@click.option("--cache-dir", help="Folder for latents and metrics, which later runs read as well.")
@click.option("--obs-dtype", type=click.Choice(["float32", "float16"]), default="float32")
@click.option("-p", "overrides", multiple=True, metavar="KEY=VALUE", help="Change a hyperparameter; may be repeated.")
@click.option("--seed", type=click.IntRange(min=0), default=0)
@click.pass_context
def train_agent(ctx: click.Context, out: Path, resume: bool, **options: Any) -> None:
    """Train an agent that decides which diffusion steps to skip, or how much work a forward does.

    Without --env, the agent learns on the table of SkipDiffBanditTable-v0 in about a minute. The command chooses it on
    validation photographs and prints its score on test photographs. OUT/best is the agent with the highest score or
    reward in an evaluation. Other commands take OUT or OUT/best as --agent.

    Press Ctrl-C to stop the training; --resume continues it from its last state.
    """
    from agents.benchmark import load_zip
    from agents.training.config import AgentTrainingConfig, resumed_config
    from agents.training.hyperparameters import parse_overrides
    from agents.training.sb3 import MODEL
    from agents.training.sb3 import train_agent as train
    from skipdiff_env.rules import PRICE
    from skipdiff_env.scoring import BENCHMARKS, score

    given = given_options(ctx, options)
    if resume:
        config = resumed_config(out, given)
    else:
        env_id, overrides = options["env_id"], parse_overrides(options["overrides"])
        if options["env_steps"] is not None:
            overrides["n_timesteps"] = options["env_steps"]
        if env_id in BENCHMARKS:
            _check_table_options(given)
            env: dict[str, Any] = {name: given[name] for name in ("table", "nfe_penalty") if name in given}
            env |= absolute_paths(env, *(env.keys() & {"table"}))
        else:
            if options["table"] is not None:
                raise ConfigError(f"--table is for the environments {', '.join(BENCHMARKS)}, got {env_id}")
            options = _settled(options)
            env = episode_settings(options) | {"noise_seeds": options["noise_seeds"] or None}
            env |= {name: options[name] for name in ("obs_dtype", "crop")}
        own = {each.name: options[each.name] for each in fields(AgentTrainingConfig) if each.name in options}
        own["eval_images"] = list(options["eval_images"]) or None
        config = AgentTrainingConfig(options["algo"], env_id, env, overrides, **own)
    path = train(config, out, resume)
    text = f"agent: {path}"
    if config.on_table:
        model, price = load_zip(out / MODEL, trust_pickle=True), config.env_kwargs.get("nfe_penalty", PRICE)
        found = score(model, env_id=config.env, table=config.env_settings["table"], nfe_penalty=price)
        text += (
            f" (score {found.value:.3f} [{found.low:.3f}, {found.high:.3f}] on the test photographs; 0 is the best "
            "fixed schedule, 1 the best one under the other noises)"
        )
    click.echo(text)


def _check_table_options(given: dict[str, Any]) -> None:
    """Raise ConfigError if options were given that need an environment with a network."""
    if foreign := [f"--{name.replace('_', '-')}" for name in sorted(given.keys() - set(ON_TABLE))]:
        raise ConfigError(
            f"training on a table has no setting {', '.join(foreign)}; with a network, name its environment, such as "
            "--env SkipDiffBandit-v0"
        )


@click.command("import-sr3")
@click.argument("file", metavar="GEN.pth", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(file_okay=False, path_type=Path))
@click.option(
    "--norm-groups",
    type=click.IntRange(min=1),
    help="Groups of every GroupNorm: norm_groups in the JSON file of the model. GEN.pth does not contain it.  "
    "[default: 32 if it divides the width, else the best fit]",
)
@click.option(
    "--image-size", type=click.IntRange(min=1), default=128, help="Side of the pictures that the model was trained on."
)
@click.option("--scale", type=click.IntRange(min=1), default=8, help="Factor by which the model enlarges.")
@click.option("--coarse-steps", type=click.IntRange(min=1), default=10, help="Default S of the checkpoint.")
@click.option("--overwrite", is_flag=True, help="Write into OUT although it is not empty.")
@click.option(
    "--trust-pickle", is_flag=True, help="Run code that the file may hold. Use it only for files that you trust."
)
def import_sr3(file: Path, out: Path, overwrite: bool, **options: Any) -> None:
    """Turn a checkpoint of SR3 (I…_E…_gen.pth) into the folder OUT, which every other command takes as --checkpoint.

    The network has the same predictions as the original at each noise level. It is sampled with the cosine schedule of
    100 steps.
    """
    if out.exists() and any(out.iterdir()) and not overwrite:
        raise ConfigError(f"the folder {out} is not empty; name another one or pass --overwrite")

    from ddpm.checkpoints import save_checkpoint
    from ddpm.nets import sr3

    unet = sr3.import_sr3(file, **options)
    save_checkpoint(unet, out)
    click.echo(sr3.describe(unet, guessed_groups=options["norm_groups"] is None))
    click.echo(f"checkpoint: {out}")
