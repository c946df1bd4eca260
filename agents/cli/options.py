"""Options that several commands share, and options made from dataclasses."""

import dataclasses
import inspect
import os
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import click
from click.core import ParameterSource

from ddpm.util.errors import ConfigError
from ddpm.util.files import real_path

Command = Callable[..., Any]


def attribute_docs(kind: type) -> dict[str, str]:
    """Return the descriptions of attributes in the docstrings of a class and its bases, by attribute."""
    docs: dict[str, str] = {}
    for each in reversed(kind.__mro__):
        text = inspect.cleandoc(each.__doc__ or "")
        section = re.search(r"^Attributes:\n(.*?)(?:\n\n|\Z)", text, re.DOTALL | re.MULTILINE)
        for entry in re.split(r"\n(?= {4}\w)", section[1]) if section else ():
            name, _, sentence = entry.strip().partition(": ")
            docs[name] = " ".join(sentence.split())
    return docs


def _kind_of(hint: Any) -> dict[str, Any]:
    """Return the type by which click parses values of a Python type."""
    if get_origin(hint) is Literal:
        return {"type": click.Choice(get_args(hint))}
    if get_origin(hint) in (UnionType, Union):  # X | None
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
    options = []
    for each in dataclasses.fields(kind):
        if each.name not in leave_out:
            default = () if each.default is dataclasses.MISSING else each.default
            flag = f"--{each.name.replace('_', '-')}"
            options.append(click.option(flag, default=default, help=docs[each.name], **_kind_of(hints[each.name])))
    return several(*options)


def several(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """Return a decorator that adds several options to a command, in their order."""

    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def given_options(ctx: click.Context, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that were given on the command line."""
    return {k: v for k, v in options.items() if ctx.get_parameter_source(k) is ParameterSource.COMMANDLINE}


def parsed(parse: Callable[[str], Any]) -> Callable[[click.Context, click.Parameter, str | None], Any]:
    """Return a callback that parses a value; a ValueError is a usage error."""

    def callback(ctx: click.Context, parameter: click.Parameter, value: str | None) -> Any:
        try:
            return None if value is None else parse(value)
        except ValueError as error:
            raise click.BadParameter(str(error)) from None

    return callback


def numbers(count: int | None = None) -> Callable[[click.Context, click.Parameter, str | None], Any]:
    """Return a callback that parses whole numbers separated by commas."""

    def parse(text: str) -> tuple[int, ...]:
        try:
            found = tuple(map(int, text.split(",")))
        except ValueError:
            raise ValueError(f"expected whole numbers separated by commas, got {text!r}") from None
        if count is not None and len(found) != count:
            raise ValueError(f"expected {count} numbers separated by commas, got {text!r}")
        return found

    return parsed(parse)


def _sampler(text: str) -> str:
    from ddpm.samplers import coarse_eta

    coarse_eta(text, "the sampler")
    return text


def _degradation(text: str) -> str:
    from ddpm.pictures.degradation import Degradation

    Degradation.parse(text)
    return text


def _prices(text: str) -> float | tuple[float, ...]:
    """Return one price, or the lowest and the highest."""
    try:
        found = tuple(map(float, text.split(",")))
    except ValueError:
        raise ValueError(f"expected a number, or two separated by a comma, got {text!r}") from None
    return found[0] if len(found) == 1 else found


def degradation(default: str | None = "bicubic", note: str = "") -> Callable[[Command], Command]:
    """Return the option --degradation."""
    return click.option(
        "--degradation",
        default=default,
        callback=parsed(_degradation),
        metavar="[bicubic|photo[:STRENGTH]|photo2[:STRENGTH]]",
        help="Degradation of the low-resolution pictures. photo: blurred, noisy and compressed, each with a STRENGTH "
        f"in 0 … 1, or with strengths that are drawn for each picture; photo2: all of it twice.{note}",
    )


def image_size(default: int, least: int = 16) -> Callable[[Command], Command]:
    """Return the option --image-size."""
    return click.option(
        "--image-size", type=click.IntRange(min=least), default=default, help="Side of the pictures' centre crops."
    )


def limit(default: int | None = None) -> Callable[[Command], Command]:
    """Return the option --limit."""
    return click.option(
        "--limit", type=click.IntRange(min=1), default=default, help="Take only so many pictures, evenly spread."
    )


def batch_size(default: int) -> Callable[[Command], Command]:
    """Return the option --batch-size."""
    return click.option("--batch-size", type=click.IntRange(min=1), default=default)


def sampler(stage: str, default: str | None, note: str) -> Callable[[Command], Command]:
    """Return the option for the sampler of a stage, "coarse" or "fine"."""
    return click.option(
        f"--{stage}-sampler",
        callback=parsed(_sampler),
        default=default,
        metavar="[ddpm|ddim|ddim:ETA|dpmsolver++]",
        help=f"Sampler of the {stage} stage{note}",
    )


IMAGES = click.option(
    "--images",
    multiple=True,
    help="Folder, file or pattern of photographs; may be repeated.  [default: scikit-image's]",
)
SOURCES = click.option(
    "--sources",
    type=click.Path(path_type=Path),
    help="Tab-separated file whose second column names the photograph that a picture is cut from, which is the unit of "
    "intervals and splits.  [default: each picture is a photograph]",
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

COARSE = sampler(
    "coarse",
    None,
    "; ETA, 0 … 1, is the share of ddpm's noise.  [default: that of the agent, the environment or the checkpoint]",
)
PLAN = several(
    click.option(
        "--steps",
        callback=numbers(2),
        help="S,N: the number of coarse steps, and of diffusion steps in each.  [default: those of the agent, the "
        "environment or the checkpoint]",
    ),
    COARSE,
    sampler(
        "fine",
        None,
        "; dpmsolver++ is for jumps and schedules.  [default: that of the agent, the environment or the schedule, or "
        "ddpm]",
    ),
    click.option(
        "--first-step",
        type=click.IntRange(min=1),
        help="Diffusion step of the first decision, N … T.  [default: that of the agent or the environment, or N]",
    ),
)

DEVICE = click.option("--device", default="cpu", help="cpu, cuda, cuda:1, mps …")
TRUST_PICKLE = click.option("--trust-pickle", is_flag=True, help="Load files of pickles, which can run any code.")
QUALITY = click.option(
    "--quality",
    type=click.FloatRange(0, 1),
    help="From few forwards (0) to many (1), for an agent that was trained for a range of prices.  [default: 0.5]",
)
LEVELS = click.option(
    "--levels",
    multiple=True,
    metavar="[SAMPLER/]LEVELS",
    help="Also run a fixed schedule: the falling levels at which the network runs, as in 20,13,6,2; even:8 means 8 "
    "even steps, and even:1*8 one forward of 8 substeps. A sampler may stand before it, as in ddim:0.5/even:8. May be "
    "repeated.",
)


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


# Options of an environment that are not part of the plan.
EPISODES = several(
    click.option(
        "--checkpoint",
        "--denoiser",
        "checkpoint",
        help=f"Name, folder or Hub id. {DENOISER_HELP}  [default: --env's, or natural-x4]",
    ),
    IMAGES,
    degradation(None, "  [default: --env's, or bicubic]"),
    click.option(
        "--split",
        type=click.Choice(["train", "test"]),
        help="Part of scikit-image's photographs, without --images.  [default: all]",
    ),
    click.option("--image-size", type=click.IntRange(min=1), help="Side of the crops in pixels.  [default: --env's]"),
    click.option("--metric", help="The reward's metric: niqe, lpips, psnr, ssim, or any of pyiqa.  [default: --env's]"),
    click.option(
        "--nfe-penalty",
        callback=parsed(_prices),
        metavar="PRICE|LOW,HIGH",
        help="Price of a fine forward in the reward; LOW,HIGH: each episode draws its own.  [default: --env's]",
    ),
    DEVICE,
)


def episode_settings(options: dict[str, Any]) -> dict[str, Any]:
    """Remove `EPISODES` and the parts of a plan from options, and return them as arguments of the environment.

    None leaves the default.
    """
    from skipdiff_env.plan import PARTS

    names = ("checkpoint", "images", "split", "degradation", "image_size", "metric", "nfe_penalty", *PARTS)
    settings = {name: options.pop(name, None) for name in names}
    settings["images"] = list(settings["images"] or ()) or None
    return {name: value for name, value in settings.items() if value is not None}


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
