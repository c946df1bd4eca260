"""The work behind `skipdiff web`: enlarging pictures and playing episodes. The page itself is `agents.web.page`."""

import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from math import log
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from agents.agent import PAPER, Agent, own_agent
from agents.cli.options import environment
from agents.playing import AgentPolicy, SchedulePolicy, play
from agents.upscaling.jobs import make_upscaler
from ddpm.checkpoints import resolve_checkpoint
from ddpm.pictures.degradation import downsample
from ddpm.pictures.images import Picture, read_header, read_picture, to_tensor, to_uint8
from ddpm.schedule import even_levels
from ddpm.util.errors import ConfigError, ImageError
from skipdiff_env.config import TaskConfig
from skipdiff_env.episode import Episode
from skipdiff_env.pictures import PHOTOGRAPHS, Pictures, Rgb
from skipdiff_env.refinement import Chooser
from skipdiff_env.rendering import draw_map
from skipdiff_env.rules import Action
from skipdiff_env.task import Task
from skipdiff_env.upscaler import Upscaled, Upscaler, check_room

# Levels of the schedules of even steps that the slider chooses from.
LEVELS = 20
# Largest side of the crops that samples are shrunk from, in pixels.
SAMPLE_SIDE = 384
# Words for the detail of a part, from the least to the most.
AMOUNTS = ("little", "some", "much")

# The slider, as arguments of Gradio's.
Knob = dict[str, Any]
PART: Knob = {"minimum": 0, "maximum": 1, "step": 0.05, "value": 0.5}
DETAIL: Knob = {"label": "Detail", "info": "0 (faithful) … 1 (rich)", **PART}
QUALITY: Knob = {"label": "Quality", "info": "0 (few forwards) … 1 (many)", **PART}
EVEN_STEPS: Knob = {
    "label": "Number of even steps", "info": "Forwards of the network", "minimum": 1, "maximum": LEVELS, "step": 1,
    "value": 8,
}  # fmt: skip


@dataclass(frozen=True)
class Enlarged:
    """A result, and the parts of the page that show it.

    Attributes:
        picture: the result, with alpha and metadata of the source.
        before: the source, enlarged by bicubic interpolation, uint8 (H, W, 3).
        map: the steps of each tile, drawn over the result, uint8.
        summary: sizes, seconds, and the work that was done, in sentences.
        parts: number of tiles whose steps were chosen one by one.
    """

    picture: Picture
    before: Rgb
    map: Rgb
    summary: str
    parts: int


class Workshop:
    """Enlarges pictures and begins episodes, for the checkpoints that may be chosen.

    Args:
        checkpoints: names, folders or Hub ids.
        device: where to compute.
        max_pixels: largest number of pixels of a photograph.
        episodes: arguments of the environment of the episodes, beside those of the agent that plays.

    Raises:
        SkipDiffError: a checkpoint is unknown, the first is damaged, or there is no such device.
    """

    def __init__(
        self,
        checkpoints: Sequence[str],
        device: str = "cpu",
        max_pixels: int = 2**20,
        **episodes: Any,
    ) -> None:
        self.folders = {name: resolve_checkpoint(name) for name in checkpoints}
        self.device, self.max_pixels, self._episodes = device, max_pixels, episodes
        self._tasks: dict[str, Task] = {}
        self._upscalers: dict[str, Upscaler] = {}
        self._default(checkpoints[0])  # the page opens with it; the others are loaded when they are chosen

    def _default(self, checkpoint: str) -> Upscaler:
        """Return the upscaler of `skipdiff upscale` without options, which is loaded once.

        Raises:
            ConfigError: the checkpoint is not one of those that may be chosen.
        """
        if checkpoint not in self.folders:
            raise ConfigError(f"unknown checkpoint {checkpoint!r}; known are {', '.join(self.folders)}")
        if checkpoint not in self._upscalers:
            self._upscalers[checkpoint] = make_upscaler(
                checkpoint=checkpoint, device=self.device, start=None, levels=None
            )
        return self._upscalers[checkpoint]

    def _stepwise(self, checkpoint: str) -> Agent | None:
        """Return the agent of the checkpoint that decides step by step, which plays the episodes."""
        agent = own_agent(self.folders[checkpoint], self.device)
        if agent is not None and agent.config.kind == "skip":
            return agent
        return own_agent(self.folders[checkpoint], self.device, PAPER)

    def knob(self, checkpoint: str) -> Knob:
        """Return the slider of a checkpoint: the detail, if it has substeps; the quality, if its agent takes a price;
        or else the number of steps.
        """
        if self._default(checkpoint).unet.substeps > 1:
            return DETAIL
        agent = self._stepwise(checkpoint)
        return EVEN_STEPS if agent is None or agent.config.price_range is None else QUALITY

    def box(self, checkpoint: str) -> tuple[str, str]:
        """Return the label of the box that stands beside the slider, and the line below the label."""
        if _chooses_detail(self._default(checkpoint).policy):
            return "An agent chooses the detail of each part", "Untick it to choose on the slider."
        if self.knob(checkpoint) is DETAIL:
            return "The checkpoint's own setting", "It has no agent for detail. Untick it to choose on the slider."
        return "The checkpoint's own steps", "As skipdiff upscale takes them. Untick it to choose on the slider."

    def upscaler(self, checkpoint: str, amount: float | None) -> Upscaler:
        """Return the upscaler for a position of the slider; None: that of `skipdiff upscale` without options.

        Raises:
            ConfigError: the position is out of range.
        """
        default, knob = self._default(checkpoint), self.knob(checkpoint)
        if amount is None:
            return default
        if not knob["minimum"] <= amount <= knob["maximum"]:
            raise ConfigError(f"the slider must stand in {knob['minimum']} … {knob['maximum']}, got {amount!r}")
        agent, choice = self._stepwise(checkpoint), dict[str, Any]()
        if knob is DETAIL:
            choice = {"detail": amount}
        elif knob is QUALITY and agent is not None:
            choice = {"policy": AgentPolicy(agent, amount), "plan": agent.config.plan}
        else:
            choice = {"levels": even_levels(LEVELS, round(amount))}
        return Upscaler(default.unet, device=self.device, **choice)

    def read(self, path: str | Path) -> Picture:
        """Return a photograph that was uploaded.

        Raises:
            ImageError: it is no picture, or larger than allowed.
        """
        header = read_header(path)
        if header.width * header.height > self.max_pixels:
            raise ImageError(
                f"the photograph has {header.width} x {header.height} pixels, more than the {self.max_pixels} of "
                "--max-pixels; shrink it, or use skipdiff upscale"
            )
        return read_picture(path)

    def enlarge(
        self,
        checkpoint: str,
        picture: Picture,
        amount: float | None,
        seed: int | None,
        progress: Callable[[float], object] = lambda part: None,
    ) -> Enlarged:
        """Enlarge a picture.

        Args:
            checkpoint: one of those that may be chosen.
            picture: the source.
            amount: position of the slider, see `knob`; None: as `skipdiff upscale` does without options.
            seed: of the noise.
            progress: called with the part that is done, 0 … 1.

        Raises:
            SkipDiffError: an argument is out of range, or the result does not fit into memory.
        """
        if seed is None:
            raise ConfigError("the seed is empty; give a whole number of at least 0")
        upscaler = self.upscaler(checkpoint, amount)
        height, width = picture.rgb.shape[:2]
        size = width * upscaler.scale, height * upscaler.scale
        check_room(3, *size)
        done = 0.0

        def advance(part: float) -> None:
            nonlocal done
            done += part
            progress(min(1.0, done / upscaler.expected_nfe))

        ((large, result),) = upscaler.enlarge([picture], [int(seed)], advance)
        before = np.asarray(Image.fromarray(picture.rgb).resize(size, Image.Resampling.BICUBIC))
        summary = f"{width} x {height} → {size[0]} x {size[1]} pixels in {result.seconds:.1f} s. {forwards(result)}"
        if isinstance(upscaler.policy, Chooser) and _chooses_detail(upscaler.policy):
            most = max(sum(schedule.substeps) for schedule in upscaler.policy.schedules)
            summary += f" {details(result, max(upscaler.unet.substeps, most, 2))}"
        drawing = draw_map(to_uint8(result.sr), result.tiles)
        return Enlarged(large, before, drawing, summary, len(result.tiles))

    def sample(self, name: str, checkpoint: str) -> Picture:
        """Return the middle of one of scikit-image's photographs, shrunk as often as the checkpoint enlarges.

        Raises:
            ConfigError: there is no such photograph or checkpoint.
        """
        from skimage import data

        scale = self._default(checkpoint).scale
        if name not in PHOTOGRAPHS:
            raise ConfigError(f"unknown sample {name!r}; known are {', '.join(PHOTOGRAPHS)}")
        rgb = getattr(data, name)()[..., :3]
        sides = [min(side, SAMPLE_SIDE) // scale * scale for side in rgb.shape[:2]]
        top, left = ((whole - side) // 2 for whole, side in zip(rgb.shape[:2], sides, strict=True))
        middle = np.ascontiguousarray(rgb[top : top + sides[0], left : left + sides[1]])
        return Picture(to_uint8(downsample(to_tensor(middle)[None], scale)[0]))

    def task(self, checkpoint: str) -> Task:
        """Return the environment of the episodes: that of the agent's training, or else one of jumps."""
        self._default(checkpoint)
        if checkpoint not in self._tasks:
            agent = self._stepwise(checkpoint)
            plan = None if agent is None else agent.config.plan
            jump = plan is None or plan.skip_mode == "jump"
            settings = environment("SkipDiffJump128-v0" if jump else "SkipDiff-v0")
            if agent is not None:
                trained = agent.config.training.get("env", {})
                names = ("metric", "reward", "nfe_penalty", "degradation")
                settings |= {name: trained[name] for name in names if name in trained}
            if plan is not None:
                parts = plan.settings()
                settings |= {"steps": (parts.pop("S"), parts.pop("N")), **parts}
            settings |= {"checkpoint": checkpoint, "device": self.device, **self._episodes}
            self._tasks[checkpoint] = Task(TaskConfig.of(settings))
        return self._tasks[checkpoint]

    def pictures(self) -> list[str]:
        """Return the names of the pictures that episodes are about."""
        return Pictures(None, self._episodes.get("image_size", TaskConfig.image_size)).names

    def game(self, checkpoint: str, picture: str, amount: float | None, seed: int | None) -> "Game":
        """Return an episode at its first decision.

        An agent that takes a price aims at the quality that the slider of detail or quality says; None: one half.

        Raises:
            ConfigError: an argument is out of range.
        """
        if seed is None:
            raise ConfigError("the seed is empty; give a whole number of at least 0")
        task = self.task(checkpoint)
        if picture not in task.pictures.names:
            raise ConfigError(f"unknown picture {picture!r}; choose one of the list")
        agent = self._stepwise(checkpoint)
        quality = None if agent is None or agent.config.price_range is None else amount
        return Game(task, task.pictures.names.index(picture), int(seed), agent, quality)


def _chooses_detail(policy: Any) -> bool:
    """Whether a policy is that of an agent which chooses substeps."""
    return isinstance(policy, SchedulePolicy) and not all(schedule.plain for schedule in policy.schedules)


def forwards(result: Upscaled) -> str:
    """Return a sentence on how often the network ran for a result."""
    parts = f"each of {len(result.tiles)} parts" if len(result.tiles) > 1 else "each part"
    fewest, most = (reach(tile.nfe for tile in result.tiles) for reach in (min, max))
    if fewest < most:
        return f"The network ran {fewest} to {most} times for {parts}, {result.nfe:.1f} times on average."
    return f"The network ran {'once' if most == 1 else f'{most} times'} for {parts}."


def details(result: Upscaled, most: int) -> str:
    """Return a sentence on the detail that an agent chose for the parts of a result.

    Args:
        result: the result.
        most: the number of steps that stands for the most detail.
    """
    places = (int(len(AMOUNTS) * log(tile.steps) / log(most)) for tile in result.tiles)
    counts = Counter(AMOUNTS[min(place, len(AMOUNTS) - 1)] for place in places)
    first, *others = (word for word in AMOUNTS if counts[word])
    if not others:
        return f"The agent chose {first} detail{' for all of them' if len(result.tiles) > 1 else ''}."
    parts = [f"{first} detail for {counts[first]} part{'s' * (counts[first] > 1)}"]
    parts += [f"{word} for {counts[word]}" for word in others]
    return f"The agent chose {', '.join(parts[:-1])}{',' * (len(parts) > 2)} and {parts[-1]}."


def left_out(path: str | Path) -> str:
    """Return a sentence on the pictures of a file that the page leaves out; empty for a single picture."""
    header = read_header(path)
    if header.frames == 1:
        return ""
    kind = "frames of the animation" if header.animated else "pictures in the file"
    return f"The page enlarges only the first of the {header.frames} {kind}."


def chain(levels: Sequence[int]) -> str:
    """Return a schedule for people, down to the clean picture."""
    return " → ".join(map(str, [*levels, 0]))


class Game:
    """An episode in which a person decides, beside the advice of the checkpoint's agent.

    Args:
        task: pictures, process and reward.
        image: index of the picture.
        seed: of the noise.
        agent: the one to compare with; None: there is none.
        quality: as for `AgentPolicy`.

    Raises:
        ConfigError: there is no such picture, the seed is out of range, or the agent takes no quality.
    """

    def __init__(self, task: Task, image: int, seed: int, agent: Agent | None, quality: float | None = None) -> None:
        self.task, self._image, self._seed = task, image, seed
        self._policy = None if agent is None else AgentPolicy(agent, quality)
        self._decide = None if self._policy is None else self._policy.on(task.process)
        (self.episode,) = task.begin([image], [seed], [self._price])
        self.advice: NDArray[np.float64] | None = None
        self._consult()

    @property
    def _price(self) -> float:
        known = None if self._policy is None else self._policy.price
        return self.task.price if known is None else known

    def _consult(self) -> None:
        """Get the agent's advice; it must see each decision, whoever takes it."""
        if self._decide is not None and not self.episode.ended:
            self._decide([self.episode.refinement])
            (self.advice,) = self._decide.probabilities()

    def step(self, action: Action) -> None:
        """Take one decision.

        Raises:
            ConfigError: the episode has ended.
        """
        if self.episode.ended:
            raise ConfigError("the episode has ended; begin another one")
        self.task.step([self.episode], [action])
        self._consult()

    def follow(self) -> None:
        """Let the agent take the decisions that are left.

        Raises:
            ConfigError: there is no agent, or the episode has ended.
        """
        if self.advice is None:
            raise ConfigError("the checkpoint has no agent for episodes; decide yourself")
        self.step(Action(int(self.advice.argmax())))
        while not self.episode.ended:
            self.step(Action(int(self.advice.argmax())))

    @cached_property
    def rival(self) -> Episode | None:
        """The same episode, played by the agent."""
        if self._policy is None:
            return None
        return play(self.task, self._policy, [self._image], [self._seed], price=self._price)[0]

    def frames(self) -> tuple[Rgb, Rgb | None]:
        """Return drawings of the person's episode and, at its end of the agent's, (height, width, 3)."""
        rival = self.rival if self.episode.ended else None
        return self.task.render(self.episode), None if rival is None else self.task.render(rival)

    def describe(self) -> str:
        """Return the next decision, or the outcome, in lines."""
        if self.episode.ended:
            lines = [f"You: {_outcome(self.episode)}"]
            if self.rival is not None:
                lines.append(f"The agent: {_outcome(self.rival)}")
            return "\n".join(lines)
        state, made = self.episode.refinement, len(self.episode.actions)
        line = f"Decision {made + 1} of {self.task.decisions}, at step t = {state.t}, level {state.level}; "
        line += f"{state.nfe} forwards so far, reward 0 until the end."
        if self.advice is None:
            return line
        action = Action(int(self.advice.argmax()))
        return f"{line}\nThe agent would {action.name} (probability {self.advice[action]:.2f})."


def _outcome(episode: Episode) -> str:
    state = episode.refinement
    metrics = ", ".join(f"{name} {value:.4f}" for name, value in episode.metrics.items())
    return f"reward {episode.reward:.4f}, {metrics}, {state.nfe} forwards (NFE), schedule {chain(state.levels)}"


@dataclass
class Visit:
    """The files and the episode of a page that is open.

    Attributes:
        folder: of its files.
        game: the episode that is played, if any.
        shown: the folders of the files that are shown, by the part of the page.
    """

    folder: Path
    game: Game | None = None
    shown: dict[str, Path] = field(default_factory=dict)

    def fresh(self, part: str) -> Path:
        """Return an empty folder for the files of a part of the page; those that were shown before are removed."""
        if part in self.shown:
            shutil.rmtree(self.shown[part], ignore_errors=True)
        self.folder.mkdir(exist_ok=True)  # it is gone if the page was closed meanwhile, see `Visits.during`
        self.shown[part] = Path(mkdtemp(dir=self.folder))
        return self.shown[part]

    def adopt(self, path: str | Path) -> str:
        """Move an uploaded file into the folder, and return its new place.

        Raises:
            ImageError: the file is gone.
        """
        own = Path(mkdtemp(dir=self.folder)) / Path(path).name
        try:
            shutil.move(path, own)
        except OSError:
            raise ImageError("the photograph is no longer there; drop it again") from None
        return str(own)


@dataclass
class Visits:
    """The pages that are open.

    Attributes:
        root: folder below which all files of pages lie.
        open: the visits by the name of their session.
    """

    root: Path
    open: dict[str, Visit] = field(default_factory=dict)

    def of(self, session: str | None) -> Visit:
        """Return the visit of a session, which begins with its first request."""
        name = session or ""
        if name not in self.open:
            self.open[name] = Visit(Path(mkdtemp(prefix="visit-", dir=self.root)))
        return self.open[name]

    @contextmanager
    def during(self, session: str | None) -> Iterator[Visit]:
        """Give the visit of a session while something is done for it.

        If the page is closed meanwhile, files that were written for it afterwards are removed as well.
        """
        visit = self.of(session)
        try:
            yield visit
        finally:
            if self.open.get(session or "") is not visit:
                shutil.rmtree(visit.folder, ignore_errors=True)

    def end(self, session: str | None) -> None:
        """Forget a page that was closed, with its files."""
        visit = self.open.pop(session or "", None)
        if visit is not None:
            shutil.rmtree(visit.folder, ignore_errors=True)
