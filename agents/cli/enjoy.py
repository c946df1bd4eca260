"""Drawing of an agent's episode as a picture or a film, with the probabilities of its actions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from agents.agent import Agent
from agents.cli.options import episode_settings
from agents.playing import AgentPolicy
from ddpm.util.checks import counted
from ddpm.util.errors import ConfigError
from ddpm.util.files import atomic_path
from ddpm.util.progress import say
from skipdiff_env.config import TaskConfig
from skipdiff_env.episode import Episode
from skipdiff_env.rendering import BACKGROUND, COLOURS, EMPTY, MARGIN, METADATA, TEXT
from skipdiff_env.rules import Action
from skipdiff_env.task import Task

FORMATS = (".png", ".gif", ".webp")
# Quality of a .webp film, which is lossy.
WEBP_QUALITY = 80
# Height of the bars of probabilities.
BARS = 40


@dataclass(frozen=True)
class Played:
    """An episode with the decisions of the agent.

    Attributes:
        episode: the finished episode.
        decided: one line for each decision.
        frames: uint8 (height, width, 3), at the beginning and after each decision; or only the last one.
    """

    episode: Episode
    decided: list[str]
    frames: list[NDArray[np.uint8]]

    def describe(self) -> str:
        """Return the decisions and their outcome, one line for each."""
        state = self.episode.refinement
        metrics = ", ".join(f"{name} {value:.4f}" for name, value in self.episode.metrics.items())
        outcome = f"start {state.start}, {counted(state.nfe, 'forward')}, reward {self.episode.reward:.4f}, {metrics}"
        return "\n".join([*self.decided, outcome])


def task_of(agent: Agent, env: Mapping[str, Any] | None, options: dict[str, Any]) -> Task:
    """Return the task of an agent's episodes: its plan, and its kinds of decision and observation.

    Args:
        agent: the agent.
        env: arguments of an environment; None: those of the agent's training, with the centres of pictures.
        options: options of the command, which take precedence.
    """
    config = agent.config
    if env is None:
        trained = {"image_size": config.image_size, **config.training.get("env", {})}
        known = {each.name for each in fields(TaskConfig)} - {"split", "crop"}
        env = {name: value for name, value in trained.items() if name in known and value is not None}
    plan = config.plan.settings()
    own = {"steps": (plan.pop("S"), plan.pop("N")), **plan, "decisions": config.kind, "observation": config.observation}
    own |= {"schedules": config.schedules, "substeps": config.substeps}
    return Task(TaskConfig.of({**env, **episode_settings(options), **own, "device": options["device"]}))


def enjoy(
    agent: Agent, task: Task, image: int, noise_seed: int, film: bool = True, quality: float | None = None
) -> Played:
    """Play one episode.

    Args:
        agent: the agent that decides.
        task: pictures, process and reward, with decisions of the agent's kind.
        image: index of the picture.
        noise_seed: seed of its noise.
        film: whether to draw every decision, which takes a forward for most of them, or only the end of the episode.
        quality: as for `AgentPolicy`.

    Raises:
        ConfigError: the agent was trained for other episodes or does not take a quality, or there is no such picture.
    """
    agent.check(task.plan)
    if told := agent.checkpoint_note(task.config.name):
        say(f"Note: {told}")
    policy = AgentPolicy(agent, quality)
    (episode,) = task.begin([image], [noise_seed], [task.price if policy.price is None else policy.price])
    state, decided, frames = episode.refinement, list[str](), list[NDArray[np.uint8]]()
    decide: Any = task.process.bound(policy)
    skips = list[float]()
    decisions = task.process.decisions
    skipping = decisions.stepwise

    def draw() -> None:
        frame = task.render(episode)
        frames.append(_with_bars(frame, skips, task.decisions) if skipping else frame)

    while not episode.ended:
        if film:
            draw()
        place = decisions.describe_place(state)
        (action,) = decide([state])
        probabilities = decide.probabilities()
        if skipping and probabilities is not None:
            skips.append(float(probabilities[0, Action.SKIP]))
        task.step([episode], [action])
        shown = "" if probabilities is None else f", probability {probabilities[0, int(action)]:.3f}"
        decided.append(f"{place}{decisions.describe_last(state, action)}{shown}")
    draw()
    return Played(episode, decided, frames)


def _with_bars(frame: NDArray[np.uint8], skips: Sequence[float], decisions: int) -> NDArray[np.uint8]:
    """Return a frame with the probability of SKIP at each decision, drawn below the cells of the strip."""
    height, width = frame.shape[:2]
    image = Image.new("RGB", (width, height + BARS + MARGIN), BACKGROUND)
    image.paste(Image.fromarray(frame))
    draw = ImageDraw.Draw(image)
    edges = np.linspace(MARGIN, width - MARGIN, decisions + 1).round().astype(int)
    for i in range(decisions):
        left, right = int(edges[i]), int(edges[i + 1]) - 2
        draw.rectangle((left, height, right, height + BARS - 1), fill=EMPTY)
        if i < len(skips):
            top = height + round((BARS - 1) * (1 - skips[i]))
            draw.rectangle((left, top, right, height + BARS - 1), fill=COLOURS[Action.SKIP])
            if right - left >= 20:
                text = f"{skips[i]:.2f}" if right - left >= 60 else f"{skips[i]:.1f}"
                draw.text((left + 4, height + 2), text, fill=TEXT)
    return np.asarray(image)


def write_film(frames: Sequence[NDArray[np.uint8]], path: Path) -> None:
    """Write frames as .gif or .webp, or a single one as .png.

    Raises:
        ConfigError: the file cannot be written.
    """
    first, *others = map(Image.fromarray, frames)
    durations = [1000 // METADATA["render_fps"]] * len(others) + [3000]
    try:
        with atomic_path(path) as temporary:
            first.save(temporary, quality=WEBP_QUALITY, save_all=True, append_images=others, duration=durations, loop=0)
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror or error}") from None
