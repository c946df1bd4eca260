"""One episode of an agent as a picture or a film, with the agent's probabilities."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from agents.agent import Agent
from agents.playing import AgentPolicy, ObservationPolicy, SchedulePolicy
from ddpm.util.errors import ConfigError
from ddpm.util.files import atomic_path, check_ending
from ddpm.util.progress import say
from skipdiff_env.episode import Episode
from skipdiff_env.refinement import Action
from skipdiff_env.rendering import BACKGROUND, COLOURS, EMPTY, MARGIN, METADATA, TEXT
from skipdiff_env.task import Task

FORMATS = (".png", ".gif", ".webp", ".mp4")
# Of a film as .webp, which is lossy.
WEBP_QUALITY = 80
# Height of the bars of probabilities.
BARS = 40


@dataclass(frozen=True)
class Played:
    """An episode and what the agent thought of it.

    Attributes:
        episode: ended.
        decided: what the agent decided, a line for each decision.
        frames: uint8 (height, width, 3), at the beginning and after each decision; or the last of them alone.
    """

    episode: Episode
    decided: list[str]
    frames: list[NDArray[np.uint8]]

    def describe(self) -> str:
        """Return the decisions and their outcome, in lines."""
        state = self.episode.refinement
        metrics = ", ".join(f"{name} {value:.4f}" for name, value in self.episode.metrics.items())
        outcome = f"start {state.start}, {state.nfe} forwards, reward {self.episode.reward:.4f}, {metrics}"
        return "\n".join([*self.decided, outcome])


def enjoy(
    agent: Agent, task: Task, image: int, noise_seed: int, film: bool = True, quality: float | None = None
) -> Played:
    """Play one episode.

    Args:
        agent: decides.
        task: pictures, process and reward, with decisions of the agent's kind.
        image: index of the picture.
        noise_seed: its noise.
        film: whether to draw every decision, most of which take a forward, or the end of the episode alone.
        quality: as for `AgentPolicy`.

    Raises:
        ConfigError: the agent was trained for other episodes, there is no such picture, or it takes no quality.
    """
    agent.check(task.plan)
    if told := agent.told_of(task.config.name):
        say(f"Note: {told}")
    policy = AgentPolicy(agent, quality)
    (episode,) = task.begin([image], [noise_seed], [task.price if policy.price is None else policy.price])
    state, decided, frames = episode.refinement, list[str](), list[NDArray[np.uint8]]()
    if isinstance(policy, SchedulePolicy):
        frames.append(task.render(episode))
        (shares,) = agent.shares(policy.values([state]))
        decided.append(f"schedule {policy.schedules[int(shares.argmax())]}, probability {shares.max():.3f}")
        task.run([episode], policy)
        return Played(episode, decided, [*frames, task.render(episode)])
    if isinstance(policy, ObservationPolicy):
        bound = policy.on(task.process)
        while not episode.ended:
            if film:
                frames.append(task.render(episode))
            place = f"t = {state.t:3d}" if agent.config.kind == "skip" else f"level {state.level:3d}"
            (action,) = bound([state])
            task.step([episode], [action])
            decided.append(f"{place}  {_meaning(agent, episode)}")
        return Played(episode, decided, [*frames, task.render(episode)])
    probabilities: list[NDArray[np.float64]] = []

    def draw() -> None:
        frames.append(_with_bars(task.render(episode), probabilities, task.decisions))

    for _ in range(task.decisions):
        if film:
            draw()
        (probability,) = policy.probabilities([state])
        probabilities.append(probability)
        action = Action(int(probability.argmax()))
        decided.append(f"t = {state.t:3d}  {action.name:8s}probability {probability[action]:.3f}")
        task.step([episode], [int(action)])
    draw()
    return Played(episode, decided, frames)


def _meaning(agent: Agent, episode: Episode) -> str:
    """Return what the last decision of an agent meant, in words."""
    state = episode.refinement
    if agent.config.kind == "skip":
        return Action(episode.actions[-1]).name
    return f"to level {state.path[-1]} with {state.substeps[-1]} substeps"


def _with_bars(
    frame: NDArray[np.uint8], probabilities: Sequence[NDArray[np.float64]], decisions: int
) -> NDArray[np.uint8]:
    """A frame with the probability of SKIP at each decision below it, under the cells of the strip."""
    height, width = frame.shape[:2]
    image = Image.new("RGB", (width, height + BARS + MARGIN), BACKGROUND)
    image.paste(Image.fromarray(frame))
    draw = ImageDraw.Draw(image)
    edges = np.linspace(MARGIN, width - MARGIN, decisions + 1).round().astype(int)
    for i in range(decisions):
        left, right = int(edges[i]), int(edges[i + 1]) - 2
        draw.rectangle((left, height, right, height + BARS - 1), fill=EMPTY)
        if i < len(probabilities):
            skip = float(probabilities[i][Action.SKIP])
            top = height + round((BARS - 1) * (1 - skip))
            draw.rectangle((left, top, right, height + BARS - 1), fill=COLOURS[Action.SKIP])
            if right - left >= 20:
                draw.text((left + 4, height + 2), f"{skip:.2f}" if right - left >= 60 else f"{skip:.1f}", fill=TEXT)
    return np.asarray(image)


def write_film(frames: Sequence[NDArray[np.uint8]], path: Path) -> None:
    """Writes frames as .gif, .webp or .mp4, or the last one as .png.

    Raises:
        ConfigError: the ending is another one, or the file cannot be written.
    """
    check_ending(path, FORMATS)
    fps = METADATA["render_fps"]
    try:
        with atomic_path(path) as temporary:
            if path.suffix.lower() == ".mp4":
                _write_mp4(frames, temporary, fps)
            else:
                images = [Image.fromarray(frame) for frame in frames]
                if path.suffix.lower() == ".png":
                    images[-1].save(temporary)
                else:
                    durations = [1000 // fps] * (len(images) - 1) + [3000]
                    images[0].save(
                        temporary, save_all=True, append_images=images[1:], duration=durations, loop=0,
                        quality=WEBP_QUALITY,
                    )  # fmt: skip
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror or error}") from None


def _write_mp4(frames: Sequence[NDArray[np.uint8]], path: Path, fps: int) -> None:
    import cv2

    height, width = (side - side % 2 for side in frames[0].shape[:2])
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), fps, (width, height))
    if not writer.isOpened():
        raise OSError("OpenCV has no encoder for MP4 here; write a .gif instead")
    for frame in [*frames, *[frames[-1]] * (2 * fps)]:
        writer.write(np.ascontiguousarray(frame[:height, :width, ::-1]))
    writer.release()
