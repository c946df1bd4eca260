"""The commands that compare methods, draw results and make tables."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import click

from agents.cli.options import (
    CHECKPOINT,
    COARSE,
    DENOISER,
    DEVICE,
    EPISODES,
    IMAGES,
    LEVELS,
    PLAN,
    QUALITY,
    SOURCES,
    TRUST_PICKLE,
    batch_size,
    degradation,
    environment,
    given_options,
    image_size,
    limit,
    named_agents,
    numbers,
    sampler,
)


def _hint_at_judge(names: Iterable[str]) -> None:
    """Print on stderr how to get the weights of a metric that is missing from the tables."""
    if "dists" not in names:
        click.echo(
            "DISTS is left out, its weights are not here; docs/results.md describes how to make their file", err=True
        )


@click.command()
@click.option(
    "--env",
    "env_id",
    metavar="ID",
    help="Score by this environment, such as SkipDiffBandit-v0. It sets the checkpoint, the size of the crops, the "
    "degradation, the plan, the metric, the reward and the price, unless other options change them. Its schedules are "
    "compared as well.",
)
@IMAGES
@DENOISER
@PLAN
@LEVELS
@image_size(128)
@degradation()
@click.option(
    "--seeds", type=click.IntRange(min=1), default=1, help="Number of noise seeds; figures are mean ± std over them."
)
@limit()
@click.option(
    "--metrics",
    help="Metrics, separated by commas.  [default: psnr,ssim,niqe,lpips,colour, and dists if its weights exist]",
)
@click.option(
    "--agent", "--agents", "agents", multiple=True, metavar="[NAME=]DIR", help="Agent to compare; may be repeated."
)
@TRUST_PICKLE
@click.option("--reward", help="Metric of rewards and regrets.  [default: the first agent's, or niqe if measured]")
@click.option(
    "--train-images", multiple=True, help="Photographs on which the best fixed start is chosen.  [default: --images]"
)
@click.option(
    "--paper/--no-paper",
    default=True,
    show_default=False,
    help="Also run the full chain and the paper's stages from every start.  [default: paper; no-paper with an --env "
    "of jumps]",
)
@click.option("--reference", help="Method of the table that the others are compared with; adds bootstrap intervals.")
@SOURCES
@click.option("--out", type=click.Path(path_type=Path), help="Folder for the tables, rows.csv and pictures.")
@click.option(
    "--pictures", type=click.IntRange(min=0), default=4, help="Also save the first pictures, if --out is given."
)
@DEVICE
@batch_size(16)
@click.pass_context
def evaluate(
    ctx: click.Context,
    env_id: str | None,
    images: tuple[str, ...],
    metrics: str | None,
    agents: tuple[str, ...],
    trust_pickle: bool,
    train_images: tuple[str, ...],
    reference: str | None,
    sources: Path | None,
    out: Path | None,
    pictures: int,
    **options: Any,
) -> None:
    """Compare bicubic, the full DDPM, the coarse chain, coarse + fine from every start, schedules, and agents.

    Real-ESRGAN x4plus is compared as well if skipdiff[benchmarks] is installed.

    The centre crop of each picture is shrunk and enlarged again. Metrics are computed on 8-bit results. PSNR and SSIM
    are those of luma, and the colour error is the difference of the mean colours in grey levels. The last row contains
    the metrics that need no reference, measured on the originals. The oracle takes the start (or, with an --env of
    jumps, the schedule) with the highest reward for each picture and noise. Every agent decides under the plan of its
    training. The fixed starts are those of the first agent's plan, unless options change it. With --env, the column of
    rewards contains the mean reward of the environment's episodes on these pictures under the noise seeds 0, 1 … With
    --out, finished results are kept: the same command continues after an interruption, and takes further agents and
    schedules.
    """
    from agents.agent import load_agent
    from agents.study.evaluation import default_reward
    from agents.study.evaluation import evaluate as run
    from agents.study.intervals import comparisons_markdown, shares_markdown
    from agents.study.rows import to_markdown, write_report
    from agents.study.running import Runner, default_metrics, load_crops, save_pictures
    from ddpm.checkpoints import load_denoiser
    from ddpm.util.progress import say
    from skipdiff_env.judges import refuse_judge
    from skipdiff_env.pictures import photographs_of
    from skipdiff_env.plan import PARTS

    options |= {} if env_id is None else _scoring(ctx, env_id, options)
    refuse_judge(options["reward"])
    names = default_metrics() if metrics is None else metrics.split(",")
    if env_id is not None and metrics is None:  # NIQE needs larger pictures
        names = list(
            dict.fromkeys([options["reward"], *(n for n in names if n != "niqe" or options["image_size"] >= 96)])
        )
    if metrics is None:
        _hint_at_judge(names)
    loaded = {name: load_agent(path, options["device"]) for name, path in named_agents(agents).items()}
    if not options["paper"] and env_id is None:
        if options["reward"] is not None or train_images:
            raise click.UsageError("--reward and --train-images are about the paper's starts; leave out --no-paper")
    elif options["reward"] is None:
        options["reward"] = default_reward(loaded, names)
    asked = {name: options.pop(name) for name in PARTS if name in options}
    size = options.pop("image_size")
    crops = load_crops(images, size, options.pop("limit"))
    photographs = photographs_of(crops.names, sources)
    train_crops = load_crops(train_images, size) if train_images else None
    checkpoint, device = options.pop("checkpoint"), options.pop("device")
    unet = load_denoiser(checkpoint, device, trust_pickle)
    runner = Runner(unet, names, device, options.pop("batch_size"), options.pop("degradation"))
    for agent in loaded.values():
        if note := agent.checkpoint_note(checkpoint):
            say(f"Note: {note}")
    keep = None if out is None else save_pictures(out / "pictures", pictures)
    rows = run(runner, crops, loaded, asked, train_crops=train_crops, keep=keep, folder=out, **options)
    sections = [to_markdown(rows)]
    if reference is not None:
        sections.append(comparisons_markdown(rows, reference, photographs))
    if shares := shares_markdown(rows, photographs):
        sections.append(shares)
    click.echo("\n\n".join(sections))
    if out is not None:
        write_report(out, rows, sections)


def _scoring(ctx: click.Context, env_id: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of `evaluate` that an environment sets, without those on the command line."""
    from ddpm.util.errors import ConfigError
    from skipdiff_env.config import TaskConfig
    from skipdiff_env.decisions import make_decisions
    from skipdiff_env.plan import PARTS, Plan

    given = given_options(ctx, options)
    task = TaskConfig.of(environment(env_id))
    jumps = task.skip_mode == "jump"
    if not isinstance(task.nfe_penalty, int | float) or not isinstance(task.metric, str):
        raise ConfigError(f"{env_id} has no fixed price of a forward, or a metric without a name; take another --env")
    own = {name: getattr(task, name) for name in ("checkpoint", "image_size", "degradation", *PARTS)}
    own |= {"reward": task.metric, "paper": not jumps}
    own = {name: value for name, value in own.items() if name not in given and value is not None}
    if jumps and "levels" not in given:
        from ddpm.checkpoints import load_denoiser

        unet = load_denoiser(own.get("checkpoint", options["checkpoint"]))
        asked = {name: own.get(name, options.get(name)) for name in PARTS}
        plan = Plan.resolve(unet.settings, **asked)
        choices: Any = make_decisions("schedule", plan, unet.substeps, None, task.schedules)
        own["levels"] = tuple(f"{plan.fine_sampler}/{way}" for way in choices.schedules)
    return {**own, "kind": task.reward, "price": float(task.nfe_penalty)}


@click.command()
@click.option("-o", "--out", type=click.Path(path_type=Path), default="demo.png", help="Picture to write.")
@CHECKPOINT
@click.option("--agent/--no-agent", default=True, help="Also train an agent, which takes a minute or two.")
@click.option("--seed", type=click.IntRange(min=0), default=0, help="Seed of the noise and of the training.")
@DEVICE
def demo(out: Path, agent: bool, **options: Any) -> None:
    """Shrink scikit-image's photographs, enlarge them by several methods, and train an agent for the detail."""
    from agents.cli.demo import demo as run
    from agents.cli.demo import demo_agent

    click.echo(run(out, **options))
    if agent:
        click.echo(f"\n{demo_agent(out.with_stem(f'{out.stem}-agent'), **options)}")


@click.command()
@click.option(
    "--env",
    "env_id",
    help="Environment of the episode.  [default: that of the agent's training, or SkipDiff-v0]",
)
@click.option("--agent", required=True, help="Folder of an agent or of a run, or a checkpoint that has one.")
@click.option("-o", "--out", type=click.Path(path_type=Path), default="episode.png", help=".png, .gif or .webp.")
@EPISODES
@click.option("--image", type=click.IntRange(min=0), default=0, help="Number of the picture, from 0.")
@click.option("--noise-seed", type=click.IntRange(min=0), default=0)
@QUALITY
def enjoy(
    env_id: str | None, agent: str, out: Path, image: int, noise_seed: int, quality: float | None, **options: Any
) -> None:
    """Play one episode with an agent, and draw it with the decisions."""
    from agents.agent import load_agent
    from agents.cli.enjoy import FORMATS, task_of, write_film
    from agents.cli.enjoy import enjoy as play
    from ddpm.util.files import check_ending

    check_ending(out, FORMATS)
    env = None if env_id is None else environment(env_id)
    loaded = load_agent(agent, options["device"])
    task = task_of(loaded, env, options)
    played = play(loaded, task, image, noise_seed, film=out.suffix.lower() != ".png", quality=quality)
    write_film(played.frames, out)
    click.echo(f"{played.describe()}\npicture: {out}")


@click.command()
@click.option("--evaluation", type=click.Path(path_type=Path), help="Folder that `evaluate --out` wrote.")
@click.option(
    "--run", "runs", multiple=True, type=click.Path(path_type=Path), help="Run of train-agent; may be repeated."
)
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True, help="Folder for the figures.")
def plot(evaluation: Path | None, runs: tuple[Path, ...], out: Path) -> None:
    """Draw figures of evaluations and training runs.

    For an evaluation, the figures are the perception-distortion plane, quality against forwards and against seconds,
    the quality of every start with the agents' choices, and a contact sheet of the saved pictures. report.md shows
    them above the tables. For runs, the figures are learning curves.
    """
    if evaluation is None and not runs:
        raise click.UsageError("nothing to draw; give --evaluation, --run, or both")
    from agents.study.figures import plot_evaluation, plot_runs

    written = plot_runs(runs, out) if runs else []
    written += plot_evaluation(evaluation, out) if evaluation is not None else []
    for path in written:
        click.echo(path)


@click.command()
@IMAGES
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder of the report.")
@CHECKPOINT
@click.option(
    "--agent",
    "agents",
    multiple=True,
    metavar="[NAME=]DIR",
    help="Agent that stands for SkipDiff; with a name, a further agent, whose training determines its rows (reward, "
    "price of a forward, cases 3 and 4 of Table 4); may be repeated.  [default: agent-paper of the checkpoint, if it "
    "has one]",
)
@LEVELS
@click.option(
    "--train-images",
    multiple=True,
    help="Photographs for fitting schedules by dynamic programming.  [default: no schedule is fitted]",
)
@click.option("--seeds", type=click.IntRange(min=1), default=3, help="Number of noise seeds.")
@limit()
@image_size(128, least=96)
@degradation()
@click.option(
    "--sections",
    help="Sections, separated by commas: fig1, tables12, table3, table4, table5, table6, fig5, peers.  [default: all]",
)
@SOURCES
@batch_size(16)
@DEVICE
def reproduce(
    out: Path, checkpoint: str, agents: tuple[str, ...], sections: str | None, device: str, seeds: int, **options: Any
) -> None:
    """Compute the paper's tables and figures on your pictures, with other samplers beside them, as one report.

    OUT/report.md contains the figures, the paper's tables, and the table and the intervals of `evaluate` for all
    methods. rows.csv contains every single result. Finished results are kept: the same command continues after an
    interruption, and takes further sections and agents.
    """
    from agents.agent import load_agent
    from agents.study.paper import MAIN, TRAIN_LIMIT, Paper
    from agents.study.running import Runner, default_metrics, load_crops
    from ddpm.checkpoints import load_unet, resolve_checkpoint
    from skipdiff_env.pictures import photographs_of

    named = named_agents(agents, title=MAIN)
    own = Path(resolve_checkpoint(checkpoint)) / "agent-paper"
    if MAIN not in named and own.is_dir():
        named[MAIN] = str(own)
    loaded = {name: load_agent(path, device) for name, path in named.items()}
    unet, size, train = load_unet(checkpoint, device), options["image_size"], options["train_images"]
    runner = Runner(unet, default_metrics(), device, options["batch_size"], options["degradation"])
    runner.check_size(size)
    _hint_at_judge(runner.metrics)
    train_crops = load_crops(train, size, TRAIN_LIMIT) if train else ()
    paper = Paper(runner, loaded, options["levels"], train_crops, sections.split(",") if sections else ())
    crops = load_crops(options["images"], size, options["limit"])
    photographs = photographs_of(crops.names, options["sources"])
    rows = paper.run(crops, seeds, out)
    click.echo(f"report: {paper.write(rows, crops, photographs, out)}")


@click.command()
@IMAGES
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the table.  [default: none, with --minari]")
@DENOISER
@click.option(
    "--levels",
    multiple=True,
    metavar="LEVELS",
    help="A schedule, as in 20*8 or 20*4,10*4; may be repeated.  [default: all that --steps allows]",
)
@click.option(
    "--steps",
    callback=numbers(2),
    default="1,8",
    help="S,N: the number of coarse steps, and of steps in each, without --levels.",
)
@click.option("--skip-mode", type=click.Choice(["restart", "jump"]), default="jump", help="Effect of SKIP.")
@click.option(
    "--schedules",
    type=click.IntRange(min=1),
    default=512,
    help="Number of schedules, if there are more than 10 levels.",
)
@COARSE
@sampler("fine", "ddim", ".")
@image_size(64)
@click.option(
    "--crops", type=click.IntRange(min=1), help="Number of random crops of each photograph.  [default: its centre]"
)
@SOURCES
@limit()
@degradation()
@click.option("--metrics", default="lpips,psnr", help="Metrics, separated by commas; the first is that of the reward.")
@click.option("--noise-seeds", type=click.IntRange(min=1), default=2, help="Number of noises of each crop.")
@click.option("--jobs", type=click.IntRange(min=1), default=1, help="Number of processes.")
@batch_size(32)
@DEVICE
@click.option("--minari", metavar="NAME", help="Also play episodes and write them as this Minari dataset.")
@click.option(
    "--env",
    "env_id",
    type=click.Choice(["SkipDiffBanditTable-v0", "SkipDiffStrideTable-v0", "SkipDiffTable-v0"]),
    help="Environment, with --minari.  [default: SkipDiffBanditTable-v0; SkipDiffTable-v0 for --out without --levels]",
)
@click.option("--split", help="train, validation or test, with --minari.  [default: train; all for SkipDiffTable-v0]")
@click.option("--episodes", type=click.IntRange(min=1), default=1000, help="Number of episodes in the dataset.")
@click.option("--seed", type=click.IntRange(min=0), default=0, help="Seed of the crops and of these episodes.")
def tabulate(
    out: Path | None,
    metrics: str,
    noise_seeds: int,
    levels: tuple[str, ...],
    minari: str | None,
    env_id: str | None,
    split: str | None,
    episodes: int,
    **options: Any,
) -> None:
    """Compute the outcomes of schedules for crops of photographs, so that episodes can be played without a network.

    With --levels, the table is for SkipDiffBanditTable-v0 and SkipDiffStrideTable-v0. Without --levels, it is for
    SkipDiffTable-v0. With --skip-mode restart, it contains all starts. With jump, it contains all schedules of up to 10
    levels; for more levels, it contains the even schedules and random ones. The same command continues after an
    interruption. --minari without --out plays from a shipped table.
    """
    from skipdiff_env.offline import check_minari, write_minari

    if out is None and minari is None:
        raise click.UsageError("nothing to do; give --out, --minari, or both")
    if (env_id or split) and minari is None:
        raise click.UsageError("--env and --split are for --minari")
    if minari is not None:
        check_minari(minari)  # before the table is computed
    if out is not None:
        from ddpm.schedule import Schedule
        from ddpm.util.checks import counted
        from skipdiff_env.tabulate import tabulate as run

        schedules = [Schedule.parse(text) for text in levels] or None
        metric, *reported = metrics.split(",")
        own = {"crops", "sources", "limit", "jobs", "seed"}
        settings = {name: value for name, value in options.items() if name not in {*own, "schedules"}}
        settings |= {"images": list(options["images"]) or None, "metric": metric, "report_metrics": reported}
        if schedules is not None:
            settings |= {"steps": (1, schedules[0].length), "skip_mode": "jump"}
        table = run(
            settings, out, schedules, count=options["schedules"], noises=noise_seeds,
            **{name: options[name] for name in own},
        )  # fmt: skip
        click.echo(
            f"table: {out} ({counted(len(table.photographs), 'crop')}, {counted(noise_seeds, 'noise')}, "
            f"{counted(len(table.schedules), 'schedule')})"
        )
    if minari is not None:
        env_id = env_id or ("SkipDiffTable-v0" if out is not None and not levels else "SkipDiffBanditTable-v0")
        split = split or (None if env_id == "SkipDiffTable-v0" else "train")
        click.echo(f"dataset: {write_minari(minari, env_id, out, split, episodes, options['seed'])}")


@click.command()
@IMAGES
@DENOISER
@click.option(
    "--forwards", "counts", type=click.IntRange(min=1), multiple=True, required=True,
    help="Number of forwards; may be repeated, and prints one line for each.",
)  # fmt: skip
@click.option(
    "--steps",
    type=click.IntRange(min=2),
    default=40,
    help="Number of steps of the chain, and of the levels among which the schedule chooses.",
)
@image_size(128)
@degradation()
@limit(32)
@batch_size(8)
@DEVICE
def schedule(checkpoint: str, counts: tuple[int, ...], steps: int, device: str, **options: Any) -> None:
    """Print the schedule of a number of forwards that stays nearest to a chain of many steps.

    The command computes the distance from the chain for every jump between two of its --steps levels, on your pictures.
    Dynamic programming then finds the schedule with the smallest sum. Other commands take it as --levels. Use other
    pictures to evaluate it.
    """
    from agents.study.peers import trajectory_costs
    from agents.study.running import Runner, load_crops
    from ddpm.checkpoints import load_denoiser
    from ddpm.schedule import Schedule
    from ddpm.training.best_schedule import best_levels
    from ddpm.util.errors import ConfigError

    if max(counts) > steps:
        raise ConfigError(f"--forwards must be at most --steps, {steps}, got {max(counts)}")
    runner = Runner(load_denoiser(checkpoint, device), [], device, options["batch_size"], options["degradation"])
    runner.check_size(options["image_size"])
    crops = load_crops(options["images"], options["image_size"], options["limit"])
    costs = trajectory_costs(list(runner.batches(crops)), steps)
    for forwards in counts:
        click.echo(Schedule(best_levels(costs, forwards)))
