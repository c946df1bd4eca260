"""Episodes of a task, and agents as policies of the refinement process."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray

from agents.agent import Agent, State
from agents.networks.frames import resize_latents
from skipdiff_env.episode import Episode
from skipdiff_env.observations import Observation, Observer, observes_estimates
from skipdiff_env.pictures import Rgb
from skipdiff_env.refinement import Decider, Policy, Refinement, RefinementProcess
from skipdiff_env.task import Task


class AgentPolicy:
    """An agent as a policy, for `RefinementProcess.run`, `Task.run` and the upscaler, which need its decisions.

    It decides for all pictures of a call together, in any number of threads. Latents and conditions are resized to the
    size that the agent was trained on, if its policy needs that size.

    Args:
        agent: the agent.
        quality: 0 … 1, from few forwards to many, for an agent that observes the price of a forward; None: 0.5.
        price: the price of a forward, instead of a quality.

    Raises:
        ConfigError: the agent does not observe the price, or the number is out of range.
    """

    def __init__(self, agent: Agent, quality: float | None = None, price: float | None = None) -> None:
        self.agent = agent
        self.price = agent.config.price(quality, price)
        self.decisions = agent.config.make_decisions()
        self.keep_estimates = observes_estimates(agent.config.observation, self.decisions.whole)

    @property
    def tile(self) -> int:
        """Side of the tiles that the agent decides for, which is the side of its training pictures."""
        return self.agent.config.image_size

    def on(self, process: RefinementProcess) -> "AgentRun":
        """Return the policy for one run of a process.

        Raises:
            ConfigError: the process has another plan than the episodes that the agent was trained for.
        """
        self.agent.check(process.plan)
        return AgentRun(self, process)


class AgentRun:
    """An agent in one run of a process; it must see the episodes from their first decision on.

    It keeps what the agent needs beyond the present observation: the latents so far, or the state of its policy.
    """

    def __init__(self, policy: AgentPolicy, process: RefinementProcess) -> None:
        self.agent, self.masks = policy.agent, process.decisions.masks
        config, self._space = self.agent.config, self.agent.policy.observation_space
        self._price = 0.0 if policy.price is None else policy.price
        self._observer = Observer(
            config.observation, config.plan, config.price_range, whole=policy.decisions.whole, unet=process.unet,
            latent_bound=config.latent_bound,
        )  # fmt: skip
        self._frames = self._space.shape[0] // 3 if config.observation == "latent" else 1
        # by identity; the state is kept as well, so that its id is not used again
        self._kept: dict[int, tuple[Refinement, list[NDArray[Any]], State]] = {}
        # the arguments of the last prediction
        self._seen: tuple[Any, ...] = ()

    def __call__(self, states: Sequence[Refinement]) -> list[Any]:
        """Return the action of the agent for each state."""
        observations = self._observe(states)
        known = [self._kept.get(id(state)) for state in states]
        latents: list[list[NDArray[Any]]] = [[] for _ in states]
        if self._frames > 1:
            before = [[] if old is None else old[1] for old in known]
            latents = [[*old, new][-self._frames :] for old, new in zip(before, observations, strict=True)]
            observations = np.stack([self._stacked(own) for own in latents])
        first = self.agent.first_state(1)
        memory = [first if old is None else old[2] for old in known]
        state = tuple(np.concatenate(parts, axis=1) for parts in zip(*memory, strict=True))
        episode_starts = np.array([old is None for old in known])
        self._seen = observations, state or None, episode_starts, np.stack([self.masks(each) for each in states])
        actions, after = self.agent.predict(*self._seen)
        self._kept = {
            id(each): (each, own, tuple(part[:, i : i + 1] for part in after or ()))
            for i, (each, own) in enumerate(zip(states, latents, strict=True))
        }
        return list(actions)

    def _stacked(self, latents: list[NDArray[Any]]) -> NDArray[Any]:
        """Return latents as `VecFrameStack` stacks them: the newest last, zeros in front."""
        padding = [np.zeros_like(latents[0])] * (self._frames - len(latents))
        return np.concatenate([*padding, *latents])

    def probabilities(self) -> NDArray[np.float64] | None:
        """Return the probabilities of the actions at the last call, as `Agent.probabilities` does."""
        return self.agent.probabilities(*self._seen)

    def _observe(self, states: Sequence[Refinement]) -> Observation:
        """Return the agent's observations, with the size and the dtype that its policy expects."""
        observation = self._observer(states, [self._price] * len(states))
        if isinstance(observation, dict):
            return {name: _resized(part, self._space[name]) for name, part in observation.items()}
        return _resized(observation, self._space)


def _resized(part: NDArray[Any], space: spaces.Space[Any]) -> NDArray[Any]:
    assert space.shape is not None
    if len(space.shape) == 3 and part.shape[-2:] != space.shape[-2:]:
        part = resize_latents(torch.as_tensor(part), space.shape[-1]).numpy()
    return part.astype(space.dtype, copy=False)


def play(
    task: Task,
    policy: Policy | Decider,
    images: Sequence[int | Rgb],
    noise_seeds: Sequence[int],
    batch_size: int = 32,
    price: float | None = None,
) -> list[Episode]:
    """Play one episode for each picture and noise seed.

    Args:
        task: pictures, process and reward.
        policy: the policy that decides.
        images: indices of pictures, or uint8 arrays (H, W, 3).
        noise_seeds: one noise seed for each picture.
        batch_size: number of episodes that run together.
        price: price of a fine forward in the reward; None: the task's.

    Returns:
        The finished episodes.
    """
    price = task.price if price is None else price
    episodes: list[Episode] = []
    for first in range(0, len(images), batch_size):
        chunk = images[first : first + batch_size]
        batch = task.begin(chunk, noise_seeds[first : first + batch_size], [price] * len(chunk))
        task.run(batch, policy)
        episodes += batch
    return episodes
