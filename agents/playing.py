"""Playing: episodes of a task, and an agent as a policy of the refinement process."""

import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor

from agents.agent import Agent, State, by_now
from agents.algorithms import RECURRENT
from agents.networks.frames import frame_count
from ddpm.schedule import Schedule
from ddpm.util.errors import ConfigError
from skipdiff_env.episode import Episode
from skipdiff_env.observations import Observation, Observer
from skipdiff_env.pictures import Rgb
from skipdiff_env.refinement import Chooser, Policy, Refinement, RefinementProcess
from skipdiff_env.rules import Action
from skipdiff_env.task import Task

# Pictures that are encoded at once.
TOGETHER = 8


class _Told:
    """What the policies of agents have in common.

    Args:
        agent: the agent.
        quality: 0 … 1, from few forwards to many, for an agent that observes the price of a forward; None: one half.
        price: the price of a forward itself, instead of a quality.

    Raises:
        ConfigError: the agent has learnt one price, or the number is out of range.
    """

    def __init__(self, agent: Agent, quality: float | None = None, price: float | None = None) -> None:
        self.agent = agent
        self.price = agent.config.price(quality, price)

    @property
    def tile(self) -> int:
        """Side of the pictures that the agent was trained on, and so of the tiles that it decides about."""
        return self.agent.config.image_size

    def observer(self, process: RefinementProcess | None = None) -> Callable[[Sequence[Refinement]], Observation]:
        """Return what makes the observations of the agent's environment; of estimates it needs the process."""
        config = self.agent.config
        assert config.plan is not None, "the configuration refuses it"
        unet = None if process is None else process.unet
        observe = Observer(
            config.observation, config.plan, config.price_range, whole=config.choosing, unet=unet,
            latent_bound=config.latent_bound,
        )  # fmt: skip
        price = 0.0 if self.price is None else self.price
        return lambda states: self._fitted(observe(states, [price] * len(states)))

    def _fitted(self, observation: Observation) -> Observation:
        """Return observations with pictures of the size that a policy of the agent's environment takes."""
        if self.agent.config.policy is None:
            return observation
        space = self.agent.policy.observation_space
        if isinstance(observation, dict):
            return {name: _resized(part, space[name]) for name, part in observation.items()}
        return _resized(observation, space)


def _resized(part: NDArray[Any], space: spaces.Space[Any]) -> NDArray[Any]:
    assert space.shape is not None
    if len(space.shape) < 3 or part.shape[-2:] == space.shape[-2:]:
        return part.astype(space.dtype, copy=False)
    size = space.shape[-2:]
    resized = F.interpolate(torch.as_tensor(part).float(), size, mode="bilinear", antialias=True, align_corners=False)
    return resized.numpy().astype(space.dtype, copy=False)


class SchedulePolicy(_Told):
    """An agent that chooses among schedules, as a `skipdiff_env.refinement.Chooser`; `AgentPolicy(agent)` makes it.

    As a `skipdiff_env.refinement.Policy` it takes the decisions of the chosen schedule one by one.
    """

    def __init__(self, agent: Agent, quality: float | None = None, price: float | None = None) -> None:
        super().__init__(agent, quality, price)
        self.schedules = [Schedule.parse(text) for text in agent.config.schedules or ()]
        self._observe = self.observer()
        # by identity; the state itself is kept, so that no other can take its place
        self._chosen: dict[int, tuple[Refinement, Schedule]] = {}

    def values(self, states: Sequence[Refinement]) -> Tensor:
        """Return logits or values of the schedules for each picture at its first decision, (B, schedules)."""
        return torch.cat([self.agent.scores(self._observe(group)) for group in _groups(states)])

    def choose(self, states: Sequence[Refinement]) -> list[Schedule]:
        """Return the schedule of each picture."""
        return [self.schedules[place] for place in self.values(states).argmax(dim=1).tolist()] if states else []

    def __call__(self, states: Sequence[Refinement]) -> list[Action]:
        """Return the next decision of each picture's schedule."""
        new = [s for s in states if s.t > self.agent.config.decisions or id(s) not in self._chosen]
        for state in new:
            _check_age(self.agent, state, 0)
        # other threads may keep their own episodes here
        self._chosen.update({id(s): (s, way) for s, way in zip(new, self.choose(new), strict=True)})
        levels = [self._chosen[id(state)][1].levels for state in states]
        for state in states:
            if state.t == 2:
                del self._chosen[id(state)]
        return [Action.DENOISE if s.t - 1 in own else Action.SKIP for s, own in zip(states, levels, strict=True)]

    def probabilities(self, states: Sequence[Refinement]) -> NDArray[np.float64]:
        """Return 1 for the next decision of each picture's schedule and 0 for the other, (B, 2)."""
        return np.eye(len(Action))[self(states)]


class ObservationPolicy(_Told):
    """An agent that sees the observations of its environment, as a `skipdiff_env.refinement.Onlooker`.

    `AgentPolicy(agent)` makes it.
    """

    def __init__(self, agent: Agent, quality: float | None = None, price: float | None = None) -> None:
        super().__init__(agent, quality, price)
        self.decisions = agent.config.make_decisions()
        self.keep_estimates = agent.config.observation == "features"

    def on(self, process: RefinementProcess) -> "_Onlooking":
        """Return the policy for one run of a process."""
        return _Onlooking(self, process)


class _Onlooking:
    """Keeps what an agent has of its episodes, if it is more than the present observation: latents, or its state."""

    def __init__(self, policy: ObservationPolicy, process: RefinementProcess) -> None:
        self.agent, self.masks = policy.agent, process.decisions.masks
        self._observe = policy.observer(process)
        space = self.agent.policy.observation_space
        self._frames = frame_count(space) if policy.agent.config.observation == "latent" else 1
        # by identity; the latents so far, the arrays of a recurrent policy
        self._kept: dict[int, tuple[Refinement, list[NDArray[Any]], tuple[NDArray[Any], ...]]] = {}
        # the observations of the last call
        self.seen: Observation = None

    def __call__(self, states: Sequence[Refinement]) -> list[Any]:
        """Return the action of the agent for each state."""
        observations = self._observe(states)
        known = [self._kept.get(id(state)) for state in states]
        frames = [[] if old is None else old[1] for old in known]
        if self._frames > 1:
            frames = [[*old, latent][-self._frames :] for old, latent in zip(frames, observations, strict=True)]
            padding = np.zeros_like(observations[0])
            stacks = [[padding] * (self._frames - len(own)) + own for own in frames]
            observations = np.stack([np.concatenate(stack) for stack in stacks])
        young = np.array([old is None for old in known])
        memory, recurrent = None, self.agent.config.algorithm == RECURRENT
        if recurrent:
            layers, _, size = self.agent.policy.lstm_hidden_state_shape
            empty = (np.zeros((layers, size), np.float32),) * 2
            memory = tuple(np.stack(part, axis=1) for part in zip(*(o[2] if o else empty for o in known), strict=True))
        self.seen = observations
        masks = np.stack([self.masks(state) for state in states])
        actions, memory = self.agent.predict(observations, memory, young, masks)
        after = [tuple(part[:, i] for part in memory) if recurrent else () for i in range(len(states))]
        self._kept = {
            id(state): (state, own, each) for state, own, each in zip(states, frames, after, strict=True)
        }  # fmt: skip
        return list(actions)


def _groups(states: Sequence[Refinement]) -> list[Sequence[Refinement]]:
    """Return states in groups that are observed at once."""
    return [states[i : i + TOGETHER] for i in range(0, len(states), TOGETHER)]


def play(
    task: Task,
    policy: "Policy | Chooser",
    images: Sequence[int | Rgb],
    noise_seeds: Sequence[int],
    batch_size: int = 32,
    price: float | None = None,
) -> list[Episode]:
    """Plays one episode for each picture and noise seed.

    Args:
        task: pictures, process and reward.
        policy: decides.
        images: indices of pictures, or uint8 arrays (H, W, 3).
        noise_seeds: one for each.
        batch_size: episodes that run together.
        price: what the reward pays for a fine forward; None: the task's.

    Returns:
        The episodes, ended.
    """
    price = task.price if price is None else price
    episodes: list[Episode] = []
    for first in range(0, len(images), batch_size):
        chunk = images[first : first + batch_size]
        batch = task.begin(chunk, noise_seeds[first : first + batch_size], [price] * len(chunk))
        task.run(batch, policy)
        episodes += batch
    return episodes


class AgentPolicy(_Told):
    """An agent as a `skipdiff_env.refinement.Policy`, for `RefinementProcess.run` and the upscaler.

    It decides for all pictures of a call together. A picture must come with every decision, from the first on: what the
    agent keeps of an episode, the latents so far, the features of the condition or the state of a recurrent policy, is
    kept here, apart for each thread. Latents are resized to the size that an SPN was trained on; a `JumpExtractor`
    takes crops of any picture.

    Args:
        agent: the agent.
        quality: 0 … 1, from few forwards to many, for an agent that observes the price of a forward; None: one half.
        price: the price of a forward itself, instead of a quality.

    Raises:
        ConfigError: the agent has learnt one price, or the number is out of range.
    """

    def __new__(cls, agent: Agent, quality: float | None = None, price: float | None = None) -> Any:
        """Return the policy of an agent: a `SchedulePolicy`, an `ObservationPolicy`, or one of this class."""
        if agent.config.choosing:
            return SchedulePolicy(agent, quality, price)
        return super().__new__(cls) if agent.config.policy is None else ObservationPolicy(agent, quality, price)

    def __init__(self, agent: Agent, quality: float | None = None, price: float | None = None) -> None:
        super().__init__(agent, quality, price)
        # by thread, each of which plays its own episodes
        self._views: dict[int, _Frames | _Whole] = {}

    def _view(self, states: Sequence[Refinement]) -> "_Frames | _Whole":
        """What is kept of these episodes, which another thread may have begun, or else of those of this thread."""
        for view in list(self._views.values()):
            seen: Any = view._seen
            if states and any(each is states[0] for each, *_ in list(seen.values())):
                return view
        thread, config = threading.get_ident(), self.agent.config
        if thread not in self._views:
            whole = config.observation == "dict"
            self._views[thread] = _Whole(self.agent, self.price) if whole else _Frames(self.agent)
        return self._views[thread]

    def scores(self, states: Sequence[Refinement]) -> Tensor:
        """Logits or values of the two actions for each picture at its decision, (B, 2).

        Of an agent with probabilities, under jumps: logarithms of those that it has, or has not, denoised by now since
        it last did; see `agents.agent.by_now`.

        Raises:
            ConfigError: the episodes are longer than those the agent was trained for, or were not seen from the start.
        """
        return self._view(states).scores(states)

    def probabilities(self, states: Sequence[Refinement]) -> NDArray[np.float64]:
        """Probabilities of the two actions for each picture at its decision, (B, 2); see `Agent.shares`."""
        return self.agent.shares(self.scores(states))

    def __call__(self, states: Sequence[Refinement]) -> Sequence[int]:
        """The agent's decision for each picture."""
        return [int(action) for action in self.scores(states).argmax(dim=1)] if states else []


def _check_age(agent: Agent, state: Refinement, seen: int) -> None:
    first = agent.config.decisions + 1
    if seen != first - state.t:
        raise ConfigError(
            f"the agent decides episodes that it sees from t = {first} on; got one at t = {state.t} "
            f"after {seen} of its decisions"
        )


class _Frames:
    """For an SPN: keeps the latents of each picture from its first decision to its last, and stacks them."""

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        # by identity; the state itself is kept with its latents, so that no other can take its place
        self._seen: dict[int, tuple[Refinement, list[Tensor]]] = {}

    def observe(self, states: Sequence[Refinement]) -> Tensor:
        """The stacked latents of the episodes, (B, 3 · decisions, H, W), as the agent saw them in training."""
        from agents.networks.frames import resize_latents

        first = self.agent.config.decisions + 1
        seen = {}
        for state in states:
            latent = resize_latents(state.latent[None], self.agent.config.image_size)[0]
            _, frames = self._seen.get(id(state), (state, [])) if state.t < first else (state, [])
            _check_age(self.agent, state, len(frames))
            seen[id(state)] = state, [*frames, latent]
        self._seen = seen
        padding = torch.zeros_like(latent)
        stacks = [[padding] * (first - 1 - len(frames)) + frames for _, frames in seen.values()]
        return torch.stack([torch.cat(stack) for stack in stacks])

    def scores(self, states: Sequence[Refinement]) -> Tensor:
        """See `AgentPolicy.scores`."""
        if all(state.t == self.agent.config.decisions + 1 for state in states):
            self.agent.extractor.remember(True)
        scores = self.agent.scores(self.observe(states))
        if all(state.t == 2 for state in states):
            self._seen = {}
            self.agent.extractor.remember(False)
        return scores


class _Whole:
    """For dictionaries: encodes every condition and latent once, and keeps the state of a recurrent policy."""

    def __init__(self, agent: Agent, price: float | None) -> None:
        self.agent, self.price = agent, price
        # by identity; the path of the latent, the features of condition and latent
        self._seen: dict[int, tuple[Refinement, tuple[int, ...], Tensor, Tensor | None]] = {}
        self._state: State | None = None
        # by identity; logarithm of the probability that all steps since the last one were skipped
        self._skipped: dict[int, Tensor] = {}

    @torch.inference_mode()
    def observe(self, states: Sequence[Refinement]) -> dict[str, Tensor]:
        """The observations of the episodes, conditions and latents as their features."""
        first, extractor = self.agent.config.decisions + 1, self.agent.extractor
        pairs = [(state, self._seen.get(id(state)) if state.t < first else None) for state in states]
        young = [state for state, known in pairs if known is None]
        for state in young:
            _check_age(self.agent, state, 0)
        conditions = iter(_encoded(extractor.encode, [state.lr_up for state in young]))
        moved = [
            state for state, known in pairs
            if extractor.latent is not None and (known is None or known[1] != state.path)
        ]  # fmt: skip
        latents = dict(zip(map(id, moved), _encoded(extractor.encode_latent, [s.latent for s in moved]), strict=True))
        seen = {}
        for state, known in pairs:
            condition = next(conditions) if known is None else known[2]
            latent = latents.get(id(state), None if known is None else known[3])
            seen[id(state)] = state, state.path, condition, latent
        self._seen = seen
        length = first if self.agent.config.plan is None else self.agent.config.plan.length
        observations = {
            "condition": torch.stack([condition for _, _, condition, _ in seen.values()]),
            "step": _column([state.t / length for state in states]),
            "level": _column([state.level / length for state in states]),
        }
        if extractor.latent is not None:
            observations["latent"] = torch.stack([latent for *_, latent in seen.values() if latent is not None])
        if self.price is not None:
            observations["price"] = _column([self.price] * len(states))
        return observations

    def scores(self, states: Sequence[Refinement]) -> Tensor:
        """See `AgentPolicy.scores`."""
        if any(state.t == self.agent.config.decisions + 1 for state in states):
            self._state = None
        scores, self._state = self.agent.advance(self.observe(states), self._state)
        if self.agent.stops:
            scores = self._by_now(states, scores.log_softmax(dim=1)[:, Action.SKIP])
        if all(state.t == 2 for state in states):
            self._seen, self._state, self._skipped = {}, None, {}
        return scores

    def _by_now(self, states: Sequence[Refinement], skips: Tensor) -> Tensor:
        """See `agents.agent.by_now`."""
        self._skipped = {
            id(state): self._skipped[id(state)] + skip if state.t < state.level else skip
            for state, skip in zip(states, skips, strict=True)
        }
        return by_now(torch.stack(list(self._skipped.values())))


def _encoded(encode: Callable[[Tensor], Tensor], pictures: Sequence[Tensor]) -> list[Tensor]:
    """The features of each picture (3, H, W); several are computed at once, which halves the time for small ones."""
    chunks = [list(pictures[i : i + TOGETHER]) for i in range(0, len(pictures), TOGETHER)]
    return [row for chunk in chunks for row in encode(chunk[0][None] if len(chunk) == 1 else torch.stack(chunk))]


def _column(numbers: Sequence[float]) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float32)[:, None]
