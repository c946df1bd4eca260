"""One episode of an agent as a picture or a film, with the agent's probabilities."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from agents.agent import Agent
from agents.playing import AgentPolicy, SchedulePolicy
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
        probabilities: float64, (decisions, 2), of DENOISE and SKIP at each decision.
        frames: uint8 (height, width, 3), at the beginning and after each decision; or the last of them alone.
    """

    episode: Episode
    probabilities: NDArray[np.float64]
    frames: list[NDArray[np.uint8]]

    def describe(self) -> str:
        """The decisions and what came of them, in lines."""
        first = len(self.probabilities) + 1
        lines = [
            f"t = {first - i:3d}  {action.name:8s}probability {probability[action]:.3f}"
            for i, (action, probability) in enumerate(zip(self.episode.actions, self.probabilities, strict=True))
        ]
        state = self.episode.refinement
        metrics = ", ".join(f"{name} {value:.4f}" for name, value in self.episode.metrics.items())
        lines.append(f"start {state.start}, {state.nfe} forwards, reward {self.episode.reward:.4f}, {metrics}")
        return "\n".join(lines)


def enjoy(
    agent: Agent, task: Task, image: int, noise_seed: int, film: bool = True, quality: float | None = None
) -> Played:
    """Plays one episode.

    Args:
        agent: decides.
        task: pictures, process and reward.
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
    if agent.config.schedules is not None:
        return _chosen(agent, task, image, noise_seed, quality)
    policy = AgentPolicy(agent, quality)
    (episode,) = task.begin([image], [noise_seed], [task.price if policy.price is None else policy.price])
    probabilities: list[NDArray[np.float64]] = []
    frames = []

    def draw() -> None:
        frames.append(_with_bars(task.render(episode), probabilities, task.decisions))

    for _ in range(task.decisions):
        if film:
            draw()
        (probability,) = policy.probabilities([episode.refinement])
        probabilities.append(probability)
        task.step([episode], [int(probability.argmax())])
    draw()
    return Played(episode, np.stack(probabilities), frames)


def _chosen(agent: Agent, task: Task, image: int, noise_seed: int, quality: float | None) -> Played:
    """The episode of an agent that chooses a schedule: its first and its last frame."""
    policy = SchedulePolicy(agent, quality)
    (episode,) = task.begin([image], [noise_seed], [task.price if policy.price is None else policy.price])
    first = task.render(episode)
    probabilities = agent.shares(policy.scores([episode.refinement]))
    task.run([episode], policy)
    return Played(episode, probabilities, [first, task.render(episode)])


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
