"""What `skipdiff web` does: enlarges pictures, and plays episodes. The page itself is `agents.web_page`."""

import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from agents.agent import Agent, own_agent
from agents.options import environment
from agents.playing import AgentPolicy, play
from agents.upscale_jobs import make_upscaler
from ddpm.checkpoints import resolve_checkpoint
from ddpm.degradation import downsample
from ddpm.errors import ConfigError, ImageError
from ddpm.images import Picture, read_header, read_picture, to_tensor, to_uint8
from ddpm.schedule import even_levels
from skipdiff_env.config import TaskConfig
from skipdiff_env.episode import Episode
from skipdiff_env.pictures import PHOTOGRAPHS, Pictures, Rgb
from skipdiff_env.rendering import draw_map
from skipdiff_env.rules import Action
from skipdiff_env.task import Task, shared_unet
from skipdiff_env.upscaler import Upscaled, Upscaler, check_room

# Levels of the schedules of even steps that the slider chooses from.
LEVELS = 20
# Largest side of the crops that samples are shrunk from, in pixels.
SAMPLE_SIDE = 384
# Schedules that are listed for one result.
LISTED = 6


@dataclass(frozen=True)
class Knob:
    """The slider between speed and quality.

    Attributes:
        label: what it chooses.
        lowest: its smallest value.
        highest: its largest value.
        step: distance of its values.
        value: where it stands at first.
    """

    label: str
    lowest: float
    highest: float
    step: float
    value: float


QUALITY = Knob("Quality: few forwards (0) … many (1)", 0, 1, 0.05, 0.5)
EVEN_STEPS = Knob("Number of even steps", 1, LEVELS, 1, 8)


@dataclass(frozen=True)
class Enlarged:
    """A result with what is shown of it.

    Attributes:
        picture: the result, with alpha and metadata of the source.
        before: the source, enlarged by bicubic interpolation, uint8 (H, W, 3).
        map: the forwards of each tile, drawn over the result, uint8.
        summary: sizes, seconds, forwards and schedules, in lines.
    """

    picture: Picture
    before: Rgb
    map: Rgb
    summary: str


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
        # the page opens with it; the others are loaded when they are chosen
        Upscaler(self.folders[checkpoints[0]], device=device)

    def agent(self, checkpoint: str) -> Agent | None:
        """The agent that comes with the checkpoint.

        Raises:
            ConfigError: the checkpoint is not one of those that may be chosen.
        """
        if checkpoint not in self.folders:
            raise ConfigError(f"unknown checkpoint {checkpoint!r}; known are {', '.join(self.folders)}")
        return own_agent(self.folders[checkpoint], self.device)

    def knob(self, checkpoint: str) -> Knob:
        """The slider of a checkpoint: the quality, if its agent takes a price, or else the number of steps."""
        agent = self.agent(checkpoint)
        return EVEN_STEPS if agent is None or agent.config.price_range is None else QUALITY

    def upscaler(self, checkpoint: str, amount: float | None) -> Upscaler:
        """The upscaler for a position of the slider; None: that of `skipdiff upscale` without options.

        Raises:
            ConfigError: the position is out of range.
        """
        knob = self.knob(checkpoint)
        if amount is not None and not knob.lowest <= amount <= knob.highest:
            raise ConfigError(f"the slider must stand in {knob.lowest:g} … {knob.highest:g}, got {amount!r}")
        steps = None if amount is None or knob is QUALITY else round(amount)
        return make_upscaler(
            checkpoint=self.folders[checkpoint], device=self.device, start=None,
            levels=None if steps is None else even_levels(LEVELS, steps), quality=amount if knob is QUALITY else None,
        )  # fmt: skip

    def read(self, path: str | Path) -> Picture:
        """A photograph that was uploaded.

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
        """Enlarges a picture.

        Args:
            checkpoint: one of those that may be chosen.
            picture: the source.
            amount: position of the slider, see `knob`; None: as `skipdiff upscale` does without options.
            seed: of the noise.
            progress: told the part that is done, 0 … 1.

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
        sizes = f"{width} x {height} → {size[0]} x {size[1]} pixels"
        return Enlarged(large, before, draw_map(to_uint8(result.sr), result.tiles), f"{sizes}, {describe(result)}")

    def sample(self, name: str, checkpoint: str) -> Picture:
        """The middle of one of scikit-image's photographs, shrunk as often as the checkpoint enlarges.

        Raises:
            ConfigError: there is no such photograph or checkpoint.
        """
        from skimage import data

        self.agent(checkpoint)  # refuses what may not be chosen
        if name not in PHOTOGRAPHS:
            raise ConfigError(f"unknown sample {name!r}; known are {', '.join(PHOTOGRAPHS)}")
        rgb = getattr(data, name)()[..., :3]
        scale = shared_unet(self.folders[checkpoint], self.device).scale
        sides = [min(side, SAMPLE_SIDE) // scale * scale for side in rgb.shape[:2]]
        top, left = ((whole - side) // 2 for whole, side in zip(rgb.shape[:2], sides, strict=True))
        middle = np.ascontiguousarray(rgb[top : top + sides[0], left : left + sides[1]])
        return Picture(to_uint8(downsample(to_tensor(middle)[None], scale)[0]))

    def task(self, checkpoint: str) -> Task:
        """The environment of the episodes: that which the checkpoint's agent was trained for, or else one of jumps."""
        agent = self.agent(checkpoint)
        if checkpoint not in self._tasks:
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
            settings |= {"checkpoint": self.folders[checkpoint], "device": self.device, **self._episodes}
            self._tasks[checkpoint] = Task(TaskConfig.of(settings))
        return self._tasks[checkpoint]

    def pictures(self) -> list[str]:
        """The names of the pictures that episodes are about."""
        return Pictures(None, self._episodes.get("image_size", TaskConfig.image_size)).names

    def game(self, checkpoint: str, picture: str, amount: float | None, seed: int | None) -> "Game":
        """An episode at its first decision; the agent aims at the quality of the slider, without one at one half.

        Raises:
            ConfigError: an argument is out of range.
        """
        if seed is None:
            raise ConfigError("the seed is empty; give a whole number of at least 0")
        task = self.task(checkpoint)
        if picture not in task.pictures.names:
            raise ConfigError(f"unknown picture {picture!r}; choose one of the list")
        quality = amount if self.knob(checkpoint) is QUALITY else None
        return Game(task, task.pictures.names.index(picture), int(seed), self.agent(checkpoint), quality)


def describe(result: Upscaled) -> str:
    """Seconds, forwards and schedules of a result, in lines; the most frequent schedules first."""
    count = len(result.tiles)
    mean = f" on average over {count} tiles" if count > 1 else ""
    lines = [f"{result.seconds:.1f} s, {result.nfe:.4g} forwards (NFE){mean}"]
    schedules = Counter(tile.schedule.levels for tile in result.tiles).most_common()
    for levels, times in schedules[:LISTED]:
        where = f", {times} of {count} tiles" if count > 1 else ""
        lines.append(f"Schedule {chain(levels)}{where}")
    if len(schedules) > LISTED:
        lines.append(f"and {len(schedules) - LISTED} other schedules")
    return "\n".join(lines)


def chain(levels: Sequence[int]) -> str:
    """A schedule for people, down to the clean picture."""
    return " → ".join(map(str, [*levels, 0]))


class Game:
    """An episode in which a person decides, beside what the checkpoint's agent would do.

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
        self.task, self._image, self._seed, self._agent, self._quality = task, image, seed, agent, quality
        self._policy = None if agent is None else AgentPolicy(agent, quality)
        (self.episode,) = task.begin([image], [seed], [self._price])
        self.advice: NDArray[np.float64] | None = None
        self._ask()

    @property
    def _price(self) -> float:
        known = None if self._policy is None else self._policy.price
        return self.task.price if known is None else known

    def _ask(self) -> None:
        """Asks the agent what it would do; it must see each decision, whoever takes it."""
        if self._policy is not None and not self.episode.ended:
            (self.advice,) = self._policy.probabilities([self.episode.refinement])

    def step(self, action: Action) -> None:
        """Takes one decision.

        Raises:
            ConfigError: the episode has ended.
        """
        if self.episode.ended:
            raise ConfigError("the episode has ended; begin another one")
        self.task.step([self.episode], [action])
        self._ask()

    def follow(self) -> None:
        """Lets the agent take the decisions that are left.

        Raises:
            ConfigError: there is no agent, or the episode has ended.
        """
        if self.advice is None:
            raise ConfigError("the checkpoint has no agent; decide yourself")
        self.step(Action(int(self.advice.argmax())))
        while not self.episode.ended:
            self.step(Action(int(self.advice.argmax())))

    @cached_property
    def rival(self) -> Episode | None:
        """The same episode, played by the agent."""
        if self._agent is None:
            return None
        policy = AgentPolicy(self._agent, self._quality)
        return play(self.task, policy, [self._image], [self._seed], price=self._price)[0]

    def frames(self) -> tuple[Rgb, Rgb | None]:
        """The person's episode, and at its end also the agent's, as drawings (height, width, 3)."""
        rival = self.rival if self.episode.ended else None
        return self.task.render(self.episode), None if rival is None else self.task.render(rival)

    def describe(self) -> str:
        """What is to be decided, or what came of it, in lines."""
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
    """What is kept for a page that is open: files in a folder, and an episode.

    Attributes:
        folder: of its files.
        game: the episode that is played, if any.
        shown: the folders of what is shown, by the part of the page.
    """

    folder: Path
    game: Game | None = None
    shown: dict[str, Path] = field(default_factory=dict)

    def fresh(self, part: str) -> Path:
        """An empty folder for what is to be shown in a part of the page; what was shown there before is removed."""
        if part in self.shown:
            shutil.rmtree(self.shown[part], ignore_errors=True)
        self.folder.mkdir(exist_ok=True)  # it is gone if the page was closed meanwhile, see `Visits.during`
        self.shown[part] = Path(mkdtemp(dir=self.folder))
        return self.shown[part]

    def adopt(self, path: str | Path) -> str:
        """Moves an uploaded file into the folder, and gives its new place.

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
        """The visit of a session, which begins with its first request."""
        name = session or ""
        if name not in self.open:
            self.open[name] = Visit(Path(mkdtemp(prefix="visit-", dir=self.root)))
        return self.open[name]

    @contextmanager
    def during(self, session: str | None) -> Iterator[Visit]:
        """The visit of a session while something is done for it.

        If the page is closed meanwhile, what was written for it afterwards is removed as well.
        """
        visit = self.of(session)
        try:
            yield visit
        finally:
            if self.open.get(session or "") is not visit:
                shutil.rmtree(visit.folder, ignore_errors=True)

    def end(self, session: str | None) -> None:
        """Forgets a page that was closed, with its files."""
        visit = self.open.pop(session or "", None)
        if visit is not None:
            shutil.rmtree(visit.folder, ignore_errors=True)
