"""Options that several commands share, and options made from dataclasses."""

import dataclasses
import inspect
import os
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin, get_type_hints

import click

from ddpm.util.errors import ConfigError
from ddpm.util.files import real_path

if TYPE_CHECKING:
    from agents.agent import Agent
    from agents.cluster import Cluster

Command = Callable[..., Any]


def attribute_docs(kind: type) -> dict[str, str]:
    """Return the descriptions of attributes in the docstrings of a class and its bases, by attribute."""
    docs: dict[str, str] = {}
    for each in reversed(kind.__mro__):
        text = inspect.cleandoc(each.__doc__ or "")
        section = re.search(r"^Attributes:\n(.*?)(?:\n\n|\Z)", text, re.DOTALL | re.MULTILINE)
        if section is None:
            continue
        for entry in re.split(r"\n(?= {4}\w)", "\n" + section[1]):
            name, _, sentence = entry.strip().partition(": ")
            docs[name] = " ".join(sentence.split())
    return docs


def _kind_of(hint: Any) -> dict[str, Any]:
    """Return the type by which click parses values of a Python type."""
    if get_origin(hint) is Literal:
        return {"type": click.Choice(get_args(hint))}
    if get_origin(hint) is UnionType:  # X | None
        return _kind_of(next(part for part in get_args(hint) if part is not NoneType))
    if get_origin(hint) is Sequence:
        return {"multiple": True}
    return {"is_flag": True} if hint is bool else {"type": hint}


def options_of(kind: type, leave_out: Collection[str] = ()) -> Callable[[Command], Command]:
    """Return a decorator that adds one option for each field of a dataclass to a command.

    Args:
        kind: the dataclass; the "Attributes" section of its docstring describes the fields.
        leave_out: fields without an option.
    """
    hints, docs = get_type_hints(kind), attribute_docs(kind)

    def decorate(command: Command) -> Command:
        for each in reversed(dataclasses.fields(kind)):
            if each.name in leave_out:
                continue
            default = () if each.default is dataclasses.MISSING else each.default
            flag = f"--{each.name.replace('_', '-')}"
            command = click.option(flag, default=default, help=docs[each.name], **_kind_of(hints[each.name]))(command)
        return command

    return decorate


def numbers(
    count: int | None = None,
) -> Callable[[click.Context, click.Parameter, str | None], tuple[int, ...] | None]:
    """Return a callback that parses whole numbers separated by commas."""

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


def sampler(ctx: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    """Raise a usage error if the value is not a sampler."""
    if value is not None:
        from ddpm.samplers import coarse_eta

        try:
            coarse_eta(value, str(parameter.opts[0]))
        except ValueError as error:
            raise click.BadParameter(str(error)) from None
    return value


class DegradationName(click.ParamType):
    """The name of a degradation, as `ddpm.pictures.degradation.Degradation.parse` takes it."""

    name = "degradation"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the name, or raise a usage error if it is not valid."""
        from ddpm.pictures.degradation import Degradation

        try:
            Degradation.parse(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)
        return value


DEGRADATION: dict[str, Any] = {
    "type": DegradationName(),
    "metavar": "[bicubic|photo[:STRENGTH]|photo2[:STRENGTH]]",
    "help": "Degradation of the low-resolution pictures. photo: blurred, noisy and compressed, each with a STRENGTH "
    "in 0 … 1, or with strengths that are drawn for each picture; photo2: all of it twice.",
}


IMAGES = click.option(
    "--images",
    multiple=True,
    help="Folder, file or pattern of photographs; may be repeated.  [default: scikit-image's]",
)


CHECKPOINT_HELP = (
    "Name, folder or Hub id: natural-x4 for clean photographs, photo-x4 for noisy, blurred or compressed ones, "
    "faces-x8 for aligned faces of 16 x 16 pixels."
)
CHECKPOINT = click.option("--checkpoint", default="natural-x4", help=CHECKPOINT_HELP)

DENOISER_HELP = (
    "--denoiser is another name of this option, for models of diffusers; settings may follow, as in "
    "FOLDER?noise_level=10."
)
DENOISER = click.option(
    "--checkpoint", "--denoiser", "checkpoint", default="natural-x4", help=f"{CHECKPOINT_HELP} {DENOISER_HELP}"
)


STEPS = click.option(
    "--steps",
    callback=numbers(2),
    help="S,N: the number of coarse steps, and of diffusion steps in each.  [default: those of the agent, the "
    "environment or the checkpoint]",
)


COARSE = click.option(
    "--coarse-sampler",
    callback=sampler,
    metavar="[ddpm|ddim|ddim:ETA|dpmsolver++]",
    help="Sampler of the coarse stage; ETA, 0 … 1, is the share of ddpm's noise.  [default: that of the agent, the "
    "environment or the checkpoint]",
)


FINE_SAMPLER = click.option(
    "--fine-sampler",
    callback=sampler,
    metavar="[ddpm|ddim|ddim:ETA|dpmsolver++]",
    help="Sampler of the fine stage; dpmsolver++ is for jumps and schedules.  [default: that of the agent, the "
    "environment or the schedule, or ddpm]",
)


FIRST_STEP = click.option(
    "--first-step",
    type=click.IntRange(min=1),
    help="Diffusion step of the first decision, N … T.  [default: that of the agent or the environment, or N]",
)


DEVICE = click.option("--device", default="cpu", help="cpu, cuda, cuda:1, mps …")


TRUST_PICKLE = click.option("--trust-pickle", is_flag=True, help="Load files of pickles, which can run any code.")


RAY = click.option(
    "--ray",
    metavar="[ADDRESS]",
    is_flag=False,
    flag_value="",
    help="Enlarge on a Ray cluster: auto, HOST:PORT or ray://HOST:PORT; without an address, start a cluster on this "
    "machine.",
)


WORKERS = click.option(
    "--workers",
    type=click.IntRange(min=1),
    help="Number of workers on the cluster.  [default: one for each CPU, or GPU]",
)


def make_cluster(ray: str | None, workers: int | None, device: str) -> "Cluster | None":
    """Return the cluster that --ray and --workers ask for; None without --ray."""
    if ray is None:
        if workers is not None:
            raise ConfigError("--workers is for --ray; give --ray as well, or leave --workers out")
        return None
    from agents.cluster import Cluster

    return Cluster(ray, workers, device)


def absolute_paths(options: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """Return some options, with absolute paths.

    Names of checkpoints stay as they are, and so do empty paths, which a later check refuses.
    """
    from ddpm.checkpoints import shipped_checkpoints

    def place(value: Any) -> Any:
        if isinstance(value, list | tuple):  # of files, folders and patterns
            return [os.path.abspath(each) if each.strip() else each for each in value]
        path, mark, settings = value.partition("?") if not Path(value).exists() else (value, "", "")
        found = path.strip() and path not in shipped_checkpoints() and Path(path).exists()
        return f"{os.path.abspath(path)}{mark}{settings}" if found else value

    return {name: place(options[name]) for name in names if options[name] is not None}


PLAN_OPTIONS = ("steps", "coarse_sampler", "fine_sampler", "skip_mode", "first_step")


LEVELS = click.option(
    "--levels",
    multiple=True,
    metavar="[SAMPLER/]LEVELS",
    help="Also run a fixed schedule: the falling levels at which the network runs, as in 20,13,6,2; even:8 means 8 "
    "even steps, and even:1*8 one forward of 8 substeps. A sampler may stand before it, as in ddim:0.5/even:8. May be "
    "repeated.",
)


def prices(ctx: click.Context, parameter: click.Parameter, value: str | None) -> float | tuple[float, ...] | None:
    """Return one price, or the lowest and the highest, that an option names."""
    if value is None:
        return None
    try:
        numbers = tuple(float(part) for part in value.split(","))
    except ValueError:
        raise click.BadParameter(f"expected a number, or two separated by a comma, got {value!r}") from None
    return numbers[0] if len(numbers) == 1 else numbers


def environment(name: str) -> dict[str, Any]:
    """Return the arguments with which an environment of this project is registered in Gymnasium.

    Raises:
        ConfigError: there is no such environment, or it does not run a network.
    """
    import gymnasium

    import skipdiff_env  # noqa: F401  # registers them

    ours = "skipdiff_env.vector_env:SkipDiffVectorEnv"  # not those that play from a table
    known = sorted(name for name, spec in gymnasium.registry.items() if spec.vector_entry_point == ours)
    if name not in known:
        raise ConfigError(f"unknown environment {name!r}; known are {', '.join(known)}")
    return dict(gymnasium.spec(name).kwargs)


EPISODES = (
    click.option(
        "--checkpoint",
        "--denoiser",
        "checkpoint",
        help=f"Name, folder or Hub id. {DENOISER_HELP}  [default: --env's, or natural-x4]",
    ),
    STEPS,
    COARSE,
    FINE_SAMPLER,
    FIRST_STEP,
    IMAGES,
    click.option("--degradation", **DEGRADATION | {"help": f"{DEGRADATION['help']}  [default: --env's, or bicubic]"}),
    click.option(
        "--split",
        type=click.Choice(["train", "test"]),
        help="Part of scikit-image's photographs, without --images.  [default: all]",
    ),
    click.option("--image-size", type=click.IntRange(min=1), help="Side of the crops in pixels.  [default: --env's]"),
    click.option("--metric", help="The reward's metric: niqe, lpips, psnr, ssim, or any of pyiqa.  [default: --env's]"),
    click.option(
        "--skip-mode",
        type=click.Choice(["restart", "jump"]),
        help="Effect of SKIP.  [default: that of the agent or the environment]",
    ),
    click.option(
        "--nfe-penalty",
        callback=prices,
        metavar="PRICE|LOW,HIGH",
        help="Price of a fine forward in the reward; LOW,HIGH: each episode draws its own.  [default: --env's]",
    ),
    DEVICE,
)


def episodes(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that define the episodes to a command."""
    for option in reversed(EPISODES):
        command = option(command)
    return command


def episode_settings(options: dict[str, Any]) -> dict[str, Any]:
    """Remove the options of `episodes`, and return them as arguments of the environment; None leaves the default."""
    names = (
        "checkpoint",
        "steps",
        "coarse_sampler",
        "fine_sampler",
        "first_step",
        "images",
        "split",
        "degradation",
        "image_size",
        "metric",
        "skip_mode",
        "nfe_penalty",
    )
    settings = {name: options.pop(name, None) for name in names}
    settings["images"] = list(settings["images"] or ()) or None
    return {name: value for name, value in settings.items() if value is not None}


def agents_episodes(options: dict[str, Any], agent: "Agent") -> dict[str, Any]:
    """Return the options, completed by the agent's plan where they do not set a part of it.

    The kinds of decision and observation are the agent's as well.
    """
    from ddpm.checkpoints import load_denoiser
    from skipdiff_env.plan import Plan

    config = agent.config
    asked = {name: options.get(name) for name in PLAN_OPTIONS}
    options["checkpoint"] = options["checkpoint"] or "natural-x4"
    settings = Plan.resolve(load_denoiser(options["checkpoint"]).settings, config.plan, **asked).settings()
    own: dict[str, Any] = {"steps": (settings.pop("S"), settings.pop("N")), **settings}
    own |= {"decisions": config.kind, "observation": config.observation, "schedules": config.schedules}
    return options | own | {"substeps": config.substeps if config.kind == "stride" else None}


def environment_of(agent: "Agent") -> dict[str, Any]:
    """Return the recorded arguments of the environment that an agent was trained in, for the centres of pictures."""
    from dataclasses import fields

    from skipdiff_env.config import TaskConfig

    trained = {"image_size": agent.config.image_size, **agent.config.training.get("env", {})}
    known = {each.name for each in fields(TaskConfig)} - {"split", "crop"}
    return {name: value for name, value in trained.items() if name in known and value is not None}


def named_agents(agents: Sequence[str], title: str | None = None) -> dict[str, str]:
    """Return name → folder of agents that were given as NAME=DIR or as DIR.

    The name of an agent given as DIR is `title`, or else that of its folder, or its path where two names are the same.
    """
    pairs = [given.split("=", 1) if "=" in given and not Path(given).exists() else (None, given) for given in agents]
    folders = [real_path(path).name for name, path in pairs if name is None]
    named: dict[str, str] = {}
    for name, path in pairs:
        if name is None:
            folder = real_path(path).name
            name = title or (path if folders.count(folder) > 1 else folder)
        if name in named:
            raise ConfigError(f"two agents are named {name}; give each another name, as in --agent NAME=DIR")
        named[name] = path
    return named
