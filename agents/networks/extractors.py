"""The skip proposal network (SPN) of the paper as a features extractor.

An episode has few decisions, so the policy observes all of it: `VecFrameStack(env, n_stack=N - 1,
channels_order="first")` stacks the latents seen so far, zeros in front. Running a GRU over them from a hidden state of
0 equals a recurrent policy that carries its state through the episode, works with every algorithm, and keeps `predict`
without state.
"""

import math
import threading
from typing import Any

import torch
import torch.nn.functional as F
from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import Tensor, nn

from agents.networks.frames import DistinctFrames, check_space, resize_latents
from ddpm.util.errors import ConfigError

NORMS = ("batch", "group")
# Side of the last feature map, and the smallest picture a stride-2 net of at least two layers can be built for.
LAST_MAP = 8
MIN_SIZE = 32
# Smallest weight of a new measurement of statistics; the first measurements weigh more (1/2, 1/3, …).
MOMENTUM = 0.1


class RolloutBatchNorm2d(nn.Module):
    """Batch normalisation with constant statistics from the start of a rollout to the end of learning from it.

    `nn.BatchNorm2d` normalises by its running statistics while a policy collects (evaluation mode) and by those of the
    minibatch while it learns (training mode). The policy for the same observation then differs between the two, the
    importance ratio of the first minibatch is not 1, and PPO and TRPO are off-policy from the start. Here both modes
    normalise by the running statistics. Forwards in training mode only measure the statistics of their batches, and
    the running statistics are updated when the module returns to evaluation mode, which Stable-Baselines3 does before
    the next rollout. The first batch sets the statistics, so that the first rollout is normalised as well.

    Args:
        channels: number of channels C of the input (B, C, H, W).
    """

    # "running_" is the prefix by which DQN copies statistics to its target net
    running_mean: Tensor
    running_var: Tensor
    running_count: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))
        self.register_buffer("running_count", torch.zeros(1))
        self._measured: list[tuple[int, Tensor, Tensor]] = []  # number of values, mean, mean of squares

    @torch.no_grad()
    def _measure(self, x: Tensor) -> None:
        # several times faster on a CPU than torch.var_mean
        mean = x.mean(dim=(2, 3)).double().mean(dim=0)
        square = torch.linalg.vector_norm(x, dim=(2, 3)).double().square().mean(dim=0) / x[0, 0].numel()
        self._measured.append((len(x) * x[0, 0].numel(), mean, square))

    @torch.no_grad()
    def _update(self) -> None:
        """Move the running statistics towards the measurements since the last update."""
        total = sum(count for count, _, _ in self._measured)
        mean = sum(mean * (count / total) for count, mean, _ in self._measured)
        square = sum(square * (count / total) for count, _, square in self._measured)
        self._measured.clear()
        weight = max(MOMENTUM, 1 / (self.running_count.item() + 1))
        assert isinstance(mean, Tensor)
        self.running_mean.lerp_(mean.float(), weight)
        self.running_var.lerp_((square - mean**2).clamp(min=0).float(), weight)
        self.running_count += 1

    def train(self, mode: bool = True) -> "RolloutBatchNorm2d":
        """Set the mode. A change to evaluation mode updates the running statistics."""
        if not mode and self._measured:
            self._update()
        return super().train(mode)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (B, C, H, W), B ≥ 1."""
        if self.running_count == 0:
            self._measure(x)
            self._update()
        elif self.training:
            self._measure(x)
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias)


class SkipProposalExtractor(BaseFeaturesExtractor):
    """Convolutions over each latent of an episode and a GRU over the latents: the paper's SPN without its two heads.

    The convolutions have 32, 24, 24, … channels, kernels 9, 5, 5, …, stride 2 and padding k // 2, each with
    normalisation and ReLU. Their number follows from the size of the pictures, so that the last map is 24 x 8 x 8 =
    1536: 4 for 128 px, 5 for 256 px. The GRU keeps 1536 values too. With `net_arch=[]` Stable-Baselines3 adds one
    linear layer for the logits and one for the value.

    Use it with `policy_kwargs={"features_extractor_class": SkipProposalExtractor, "net_arch": [],
    "normalize_images": False}` on `VecFrameStack(env, n_stack=N - 1, channels_order="first")`.

    Args:
        observation_space: Box of floats, (3 · n, H, W): n stacked latents, oldest first, unused ones exactly zero.
        norm: "batch" (the paper's; see `RolloutBatchNorm2d`) or "group" (8 groups, without statistics).
        image_size: side of the latents that the convolutions take, a power of two of at least 32; latents of another
            size are resized to it. None: the power of two that is nearest to the smaller side of the space.
        hidden_size: size of the GRU's state; None: the number of outputs of the convolutions (1536).
        recurrent: False leaves out the GRU and returns only the convolutions of the newest latent, for algorithms with
            a recurrent state (RecurrentPPO, on an environment that is not stacked).
        tell_step: also return the number of the decision in the episode, one-hot, with about the norm of the GRU's
            state. The paper's GRU must count the decisions, and all latents are the same until the first DENOISE.

    Raises:
        ConfigError: the space does not hold stacked latents, or a setting is out of range.
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        norm: str = "batch",
        image_size: int | None = None,
        hidden_size: int | None = None,
        recurrent: bool = True,
        tell_step: bool = False,
    ) -> None:
        check_space(observation_space)
        assert observation_space.shape is not None
        channels, height, width = observation_space.shape
        if norm not in NORMS:
            raise ConfigError(f"norm must be one of {', '.join(NORMS)}, got {norm!r}")
        if image_size is None:
            image_size = max(MIN_SIZE, 2 ** round(math.log2(min(height, width))))
        if image_size < MIN_SIZE or image_size & (image_size - 1):
            raise ConfigError(f"image_size must be a power of two of at least {MIN_SIZE}, got {image_size}")
        if hidden_size is not None and hidden_size < 1:
            raise ConfigError(f"hidden_size must be at least 1, got {hidden_size}")
        if tell_step and not recurrent:
            raise ConfigError(
                "tell_step needs the latents of the whole episode; an SPN without a GRU sees only the newest"
            )

        layers: list[nn.Module] = []
        channels_in = 3
        for layer in range(round(math.log2(image_size // LAST_MAP))):
            channels_out, kernel = (32, 9) if layer == 0 else (24, 5)
            layers += [
                nn.Conv2d(channels_in, channels_out, kernel, stride=2, padding=kernel // 2, bias=False),
                RolloutBatchNorm2d(channels_out) if norm == "batch" else nn.GroupNorm(8, channels_out),
                nn.ReLU(inplace=True),
            ]
            channels_in = channels_out
        flattened = channels_in * LAST_MAP**2
        state_size = (hidden_size or flattened) if recurrent else flattened
        super().__init__(observation_space, state_size + tell_step * (channels // 3))
        self.convolutions = nn.Sequential(*layers, nn.Flatten())
        self.gru = nn.GRUCell(flattened, state_size) if recurrent else None
        if self.gru is not None:  # until the first DENOISE, only the state differs between the decisions
            nn.init.orthogonal_(self.gru.weight_hh)
        self.image_size = image_size
        self.n_frames = channels // 3
        self.state_size, self.tell_step = state_size, tell_step
        # by thread, since each thread plays other episodes
        self._remembered: dict[int, DistinctFrames] = {}

    def remember(self, on: bool) -> None:
        """Start or stop reusing results from one call to the next, and clear the memory.

        While a policy collects or plays, each call gets the frames of the call before again. The results hold only for
        constant weights: switch the memory off (or on again) before the weights change. Calls that need gradients, and
        those of other threads, neither use nor fill it.
        """
        self._remembered.pop(threading.get_ident(), None)
        if on:
            self._remembered[threading.get_ident()] = DistinctFrames(self._zeros())

    def _zeros(self) -> Tensor:
        return next(self.parameters()).new_zeros(1, self.state_size)

    def forward(self, observations: Tensor) -> Tensor:
        """Return the features of the episodes so far.

        Args:
            observations: (B, 3 · n, H, W); frames of zeros before the first frame that is not zero are padding.

        Returns:
            (B, features_dim): the GRU's state after the newest frame (zeros where there is none), and with `tell_step`
            the number of the decision; without GRU the convolutions of the newest frame.
        """
        frames = observations.unflatten(1, (-1, 3))
        if self.gru is None:
            frames = frames[:, -1:]
        kept = None if torch.is_grad_enabled() else self._remembered.get(threading.get_ident())
        episodes = kept or DistinctFrames(self._zeros())
        numbers, new = episodes.index(frames)
        if new:
            features = self.convolutions(resize_latents(torch.stack([frames[place] for place in new]), self.image_size))
            if self.gru is not None:
                features = F.linear(features, self.gru.weight_ih, self.gru.bias_ih)
            episodes.gates = features if episodes.gates is None else torch.cat([episodes.gates, features])
        at = [0] * len(numbers)
        for depth in range(max(map(len, numbers))):
            rows, inputs = episodes.grow(at, numbers, depth)
            if rows:
                assert episodes.gates is not None
                state = episodes.gates[inputs]
                if self.gru is not None:
                    state = self._gru(state, episodes.hidden[rows])
                episodes.hidden = torch.cat([episodes.hidden, state])
        states = episodes.hidden[at]
        if not self.tell_step:
            return states
        step = states.new_zeros(len(states), self.n_frames)
        for b, episode in enumerate(numbers):
            if episode:
                step[b, len(episode) - 1] = self.state_size**0.5
        return torch.cat([states, step], dim=1)

    def _gru(self, gates: Tensor, hidden: Tensor) -> Tensor:
        """Return the next hidden state of the GRU, given its input times its weights, and the state before."""
        assert self.gru is not None
        reset_x, update_x, new_x = gates.chunk(3, dim=1)
        reset_h, update_h, new_h = F.linear(hidden, self.gru.weight_hh, self.gru.bias_hh).chunk(3, dim=1)
        update = torch.sigmoid(update_x + update_h)
        new = torch.tanh(new_x + torch.sigmoid(reset_x + reset_h) * new_h)
        return new + update * (hidden - new)
