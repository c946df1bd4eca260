"""The common part of the scalar and the batched environment: pictures, process, reward, spaces."""

import functools
import hashlib
import json
import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddpm.checkpoints import checkpoint_files, load_denoiser
from ddpm.nets.denoiser import Denoiser, fingerprint, geometry, image_multiple
from ddpm.pictures.degradation import PLAIN, Degradation, picture_key
from ddpm.pictures.images import to_tensor, to_uint8
from ddpm.schedule import Schedule, as_schedule
from ddpm.util.checks import is_whole
from ddpm.util.errors import ConfigError
from ddpm.util.files import stamp
from skipdiff_env.config import TaskConfig
from skipdiff_env.decisions import make_decisions
from skipdiff_env.episode import Episode, array
from skipdiff_env.features import FEATURES, features
from skipdiff_env.judges import JUDGES, judge_file, refuse_judge
from skipdiff_env.memo import Memo, Store
from skipdiff_env.metrics import as_metric
from skipdiff_env.observations import Observation, Observer, observes_estimates
from skipdiff_env.outcomes import OutcomeTable
from skipdiff_env.pictures import Crop, Pictures, Rgb, crop
from skipdiff_env.refinement import Decider, Policy, Refinement, RefinementProcess
from skipdiff_env.rendering import draw_frame
from skipdiff_env.rules import NOISE_SEEDS, Action, check_price, draw_price, episode_reward, quality


@functools.lru_cache(maxsize=4)
def _load_once(source: str, device: str, files: tuple[tuple[int, ...], ...]) -> Denoiser:
    """Return the net of a checkpoint, shared by all environments of the process; `files` identifies its files."""
    return load_denoiser(source, device)


def shared_denoiser(checkpoint: str | Path | Denoiser, device: str) -> Denoiser:
    """Return the denoiser of a checkpoint, which is loaded once until one of its files is replaced."""
    if not isinstance(checkpoint, str | Path):
        return checkpoint
    files = tuple(stamp(file) for file in checkpoint_files(checkpoint))
    unet = _load_once(str(checkpoint), device, files)
    predictors = getattr(unet, "_predictor", [])
    if any(stamp(predictor.file) != predictor.stamp for predictor in predictors):  # it may lie elsewhere
        _load_once.cache_clear()
        unet = _load_once(str(checkpoint), device, files)
    return unet


class Task:
    """Pictures, process and reward behind any number of episodes.

    Args:
        config: the arguments of the environment.

    Raises:
        SkipDiffError: an argument is wrong: `ConfigError`, `CheckpointError` or `ImageError`.
    """

    def __init__(self, config: TaskConfig) -> None:
        self.config = config
        self.unet = shared_denoiser(config.checkpoint, config.device)
        if config.scale not in (None, self.unet.scale):
            raise ConfigError(
                f"the checkpoint {config.name} enlarges {self.unet.scale} times, got scale {config.scale}; take "
                "a checkpoint for that scale, or leave scale out"
            )
        multiple = image_multiple(self.unet)
        if config.image_size % multiple:
            raise ConfigError(
                f"image_size must be a multiple of {multiple} for this checkpoint, got {config.image_size}"
            )
        channels, pixels = geometry(self.unet)
        self.latent_shape = (channels, config.image_size // pixels, config.image_size // pixels)
        self.plan = config.plan(self.unet)
        if self.plan.decisions < 1:
            raise ConfigError(
                f"N in steps (S, N) must be at least 2, or there is nothing to decide; got {self.plan.S}, {self.plan.N}"
            )
        self._make_metrics()
        self.pictures = Pictures(config.images, config.image_size, config.split, config.crop == "random")
        self.degradation = Degradation.parse(config.degradation)
        # the keys of the pictures when they were last read
        self._keys: dict[int, bytes] = {}
        store = None
        if config.cache_dir is not None:
            store = Store(config.cache_dir, config.cache_dir_mb, config.device)
        self.memo = Memo(config.cache_mb, store)
        decisions = make_decisions(
            config.decisions, self.plan, self.unet.substeps, config.substeps, config.schedules
        )  # fmt: skip
        self.process = RefinementProcess(
            self.unet, self.plan, self.memo, config.batch_size, config.device, decisions,
            keep_estimates=observes_estimates(config.observation, decisions.whole),
        )  # fmt: skip
        self.observer = Observer(
            config.observation, self.plan, config.price_range, config.obs_dtype, decisions.whole,
            self.unet, self.memo, (bound := self.process.latent_bound()), math.isinf(bound),
        )  # fmt: skip
        self.observation_space = self.observer.space(self.latent_shape)
        self.action_space = decisions.space

    def __reduce__(self) -> tuple[type["Task"], tuple[TaskConfig]]:
        """Return the arguments for making the task anew; weights and remembered values are not pickled."""
        return Task, (self.config,)

    def __deepcopy__(self, memo: Any) -> "Task":
        """Return the task itself, since copies of an environment share it."""
        return self

    @functools.cached_property
    def identity(self) -> dict[str, Any]:
        """Network, plan and degradation as plain data, on which episodes depend beside their picture and noise."""
        return {"net": fingerprint(self.unet), "plan": self.plan.settings(), "degradation": str(self.degradation)}

    def _make_metrics(self) -> None:
        """Make the reward's metric and the reported ones, and check them against the size of the pictures."""
        config = self.config
        # NumPy's float64 operations behind some metrics do not exist on Apple's GPUs
        self.metric_device = "cpu" if torch.device(config.device).type == "mps" else config.device
        refuse_judge(config.metric)
        reported = config.report_metrics
        several = isinstance(reported, Sequence) and not isinstance(reported, str)
        given: list[Any] = [config.metric, *(reported if several else [reported])]  # type: ignore[misc]
        made = [as_metric(each, self.metric_device) for each in given]
        self.metric, self.metrics = made[0], {each.name: each for each in made}
        for each in made:
            each.check_size(config.image_size, config.image_size)
            if each != self.metrics[each.name]:
                raise ConfigError(f"two different metrics are called {each.name}; give one of them another name")
        # judges with other weights return other values
        judged = not self.metrics.keys().isdisjoint(JUDGES)
        self._judge = (hashlib.blake2b(judge_file().read_bytes(), digest_size=16).digest(),) if judged else ()

    @property
    def decisions(self) -> int:
        """Env steps of the longest episode."""
        return self.process.decisions.longest

    @property
    def price(self) -> float:
        """Price of each fine forward in the reward; the lowest one if each episode draws its price."""
        prices = self.config.price_range
        return prices[0] if prices is not None else float(self.config.nfe_penalty)  # type: ignore[arg-type]

    def draw(self, rng: np.random.Generator, options: Mapping[str, Any] | None) -> tuple[int | Rgb | Crop, int, float]:
        """Return picture, noise seed and price of a new episode, from `options` or else at random.

        All three are always drawn, so that a fixed one does not change the others; the crop is drawn last, from the
        picture.

        Raises:
            ConfigError: `options` has an unknown key, or a value outside its range.
        """
        options = {} if options is None else options
        if not isinstance(options, Mapping):
            raise ConfigError(f"the options of reset must be a dictionary, got {options!r}")
        known = ["image", "noise_seed", "nfe_penalty", *(["crop"] if self.pictures.whole else [])]
        unknown = sorted(map(str, options.keys() - set(known)))
        if unknown:
            raise ConfigError(
                f"unknown reset option {', '.join(unknown)}; known are {', '.join(known[:-1])} and {known[-1]}"
            )
        config = self.config
        chosen: dict[str, Any] = {
            "image": int(rng.integers(len(self.pictures))),
            "noise_seed": int(rng.integers(config.noise_seeds or NOISE_SEEDS)),
            "nfe_penalty": draw_price(rng, config.nfe_penalty),
        }
        chosen |= {name: value for name, value in options.items() if value is not None}
        image = chosen["image"]
        if self.pictures.whole and is_whole(image):
            image = self._drawn_crop(self._index(image), rng, chosen.get("crop"))
        return image, chosen["noise_seed"], self._check_price(chosen["nfe_penalty"])

    def _drawn_crop(self, index: int, rng: np.random.Generator, asked: Any) -> Crop:
        """Return a random crop of a picture, or the crop with a given first row and column."""
        drawn = self.pictures.draw(index, rng)
        if asked is None:
            return drawn
        if not isinstance(asked, Sequence | np.ndarray) or len(asked) != 2 or not all(map(is_whole, asked)):
            raise ConfigError(f"crop must be the first row and column, two whole numbers, got {asked!r}")
        return index, int(asked[0]), int(asked[1])

    def _check_price(self, price: Any) -> float:
        """Return the price of an episode, which must lie in the observation space if it is observed."""
        prices = self.config.price_range
        return check_price(price, math.inf if prices is None else prices[1])

    def begin(
        self, images: Sequence[int | Rgb | Crop], noise_seeds: Sequence[int], prices: Sequence[float] | None = None
    ) -> list[Episode]:
        """Return new episodes after their coarse stage, which runs for all of them together.

        Args:
            images: indices of the environment's pictures, uint8 arrays (H, W, 3), or with `crop="random"` crops.
            noise_seeds: noise seed of each episode.
            prices: price of a fine forward in each episode; None: `price`.

        Raises:
            ConfigError: an index or a noise seed is out of range.
            ImageError: a picture cannot be used.
        """
        for seed in noise_seeds:
            if not is_whole(seed) or not 0 <= seed < 2**63:
                raise ConfigError(f"noise_seed must be a whole number of at least 0 and below 2**63, got {seed!r}")
        pictures = [self._picture(image) for image in images]
        states = self.process.begin(
            [lr_up for *_, lr_up in pictures],
            [self._noise_key(hr, int(seed)) for (_, _, hr, _), seed in zip(pictures, noise_seeds, strict=True)],
            [key for _, key, *_ in pictures],
        )
        prices = [self.price] * len(images) if prices is None else prices
        return [
            Episode(
                index, hr, state, price, strengths=self._strengths(hr), noise_seed=int(seed), place=_place(image),
            )
            for (index, _, hr, _), state, price, image, seed in zip(
                pictures, states, prices, images, noise_seeds, strict=True
            )
        ]  # fmt: skip

    def _noise_key(self, hr: Tensor, noise_seed: int) -> int:
        """Return the key of an episode's noise: the noise seed, or a hash of it and of the crop."""
        if not self.pictures.whole:
            return noise_seed
        text = f"{picture_key(hr)[0]} {noise_seed}"
        return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1

    def step(self, episodes: Sequence[Episode], actions: Sequence[Any]) -> None:
        """Perform one decision for each episode; after the last decision, run it to the end and set its reward."""
        taken = self.process.step([episode.refinement for episode in episodes], actions)
        for episode, action in zip(episodes, taken, strict=True):
            episode.actions.append(action)
        if last := [episode for episode in episodes if self.process.decided(episode.refinement)]:
            self._end(last)

    def run(self, episodes: Sequence[Episode], policy: Policy | Decider) -> None:
        """Play episodes from their first decision to the end, following a policy with the decisions of the task.

        Raises:
            ConfigError: the policy has other decisions.
        """
        decide = self.process.bound(policy)
        while left := [episode for episode in episodes if not episode.ended]:
            self.step(left, decide([episode.refinement for episode in left]))

    def _end(self, last: Sequence[Episode]) -> None:
        """Run the last step of episodes without further decisions, and set their reward."""
        states = [episode.refinement for episode in last]
        results = self.process.finish(states)
        measured = self._measure(states, results, [episode.hr for episode in last])
        for episode, sr, metrics in zip(last, results, measured, strict=True):
            episode.sr, episode.metrics = sr, dict(metrics)
            episode.reward = self.reward(metrics, episode.refinement, episode.price)

    def reward(self, metrics: Mapping[str, float], state: Refinement, price: float) -> float:
        """Return the reward of a result with these metrics, see `episode_reward`."""
        gained = quality(metrics[self.metric.name], self.metric.lower_better, self.config.reward)
        return float(episode_reward(gained, price, state.nfe - self.process.coarse_forwards))

    def failed(self, episode: Episode) -> bool:
        """Return whether the reward's metric failed on the episode's result."""
        return math.isnan(episode.metrics[self.metric.name])

    def observe(self, episodes: Sequence[Episode]) -> Observation:
        """Return the observations of episodes, as copies; see `Observer`."""
        return self.observer([episode.refinement for episode in episodes], [episode.price for episode in episodes])

    def save(self, episode: Episode) -> dict[str, Any]:
        """Return an episode as plain data, for `restore` and pickle."""
        state = episode.refinement
        return {
            "image": self._source(episode),
            "key": state.key,
            "noise_seed": episode.noise_seed,
            "price": episode.price,
            "coarse_latent": array(state.coarse_latent),
            "latent": array(state.latent),
            "before": None if state.before is None else array(state.before),
            **{name: getattr(state, name) for name in ("t", "level", "nfe", "path", "substeps")},
            "actions": [np.asarray(action).tolist() for action in episode.actions],
            "sr": None if episode.sr is None else array(episode.sr),
            "metrics": dict(episode.metrics),
            "reward": episode.reward,
        }

    @staticmethod
    def _source(episode: Episode) -> int | Rgb | Crop:
        """Return the argument of `begin` for the picture of an episode."""
        if episode.image_index < 0:
            return to_uint8(episode.hr)
        return episode.image_index if episode.place is None else (episode.image_index, *episode.place)

    def restore(self, saved: Mapping[str, Any]) -> Episode:
        """Return the episode that `save` saved; no network runs.

        Raises:
            ConfigError: it is not a saved episode, or one of another picture, network, plan or degradation.
        """

        def tensor(values: NDArray[np.float32]) -> Tensor:
            return torch.tensor(values, device=self.config.device)

        try:
            index, key, hr, lr_up = self._picture(saved["image"])
            if saved["latent"].shape != self.latent_shape:
                raise ConfigError(f"the state is one of latents {saved['latent'].shape}, not {self.latent_shape}")
            if saved["key"] != key:
                raise ConfigError(
                    "the state was taken with another picture, checkpoint, plan or degradation; take it in an "
                    "environment of the same arguments, whose pictures are still the same"
                )
            price = self._check_price(saved["price"])
            state = Refinement(
                lr_up, self._noise_key(hr, saved["noise_seed"]), key,
                tensor(saved["coarse_latent"]), tensor(saved["latent"]),
                saved["t"], saved["level"], saved["nfe"], tuple(saved["path"]), tuple(saved["substeps"]),
                None if saved["before"] is None else tensor(saved["before"]),
            )  # fmt: skip
            return Episode(
                index, hr, state, price, [self.process.decisions.as_action(each) for each in saved["actions"]],
                None if saved["sr"] is None else tensor(saved["sr"]), dict(saved["metrics"]), saved["reward"],
                strengths=self._strengths(hr), noise_seed=saved["noise_seed"], place=_place(saved["image"]),
            )  # fmt: skip
        except (KeyError, TypeError, AttributeError) as error:
            raise ConfigError(f"this is not a state that get_state() returned ({error!r})") from None

    def render(self, episode: Episode) -> NDArray[np.uint8]:
        """Return a frame (height, width, 3) of an episode, by up to two forwards that are not counted."""
        state = episode.refinement
        if episode.coarse_estimate is None:
            beginning = replace(state, latent=state.coarse_latent, t=self.plan.N, level=self.plan.N)
            episode.coarse_estimate = self.process.estimate(beginning)
        estimate = self.process.estimate(state) if episode.actions else episode.coarse_estimate
        panels = {
            f"input, {self.config.image_size // self.unet.scale} px": self.low_resolution(episode.hr),
            "coarse estimate": episode.coarse_estimate,
            f"estimate at t = {state.t}": estimate,
            "result": episode.sr,
        }
        pictures = {name: None if image is None else to_uint8(image) for name, image in panels.items()}
        return draw_frame(pictures, self._strip(episode), self.plan.first)

    def _strip(self, episode: Episode) -> Sequence[Action]:
        """Return the decisions of an episode so far, as DENOISE and SKIP at each diffusion step."""
        if self.plan.skip_mode == "restart":
            return episode.actions
        state = episode.refinement
        steps = range(self.plan.first, max(state.t, 1), -1)
        return [Action.DENOISE if t - 1 in state.path else Action.SKIP for t in steps]

    def schedule_outcomes(
        self,
        images: Sequence[int | Rgb],
        noise_seeds: Sequence[int],
        schedules: Sequence[Schedule | str | Sequence[int]] | None = None,
    ) -> OutcomeTable:
        """Run schedules for every picture under every noise seed; common beginnings of schedules run once.

        Args:
            images: indices of the environment's pictures, or uint8 arrays (H, W, 3).
            noise_seeds: noise seeds, the same for every picture.
            schedules: schedules in any form that `ddpm.schedule.as_schedule` takes, from the plan's first step on;
                None, only with `skip_mode="restart"`: the chains of all starts, from 1 on, which are all possible
                results with restarts.

        Returns:
            The table, whose `rewards()` are those of this environment.

        Raises:
            SkipDiffError: a schedule does not fit the plan; see also `begin`.
        """
        if schedules is None and self.plan.skip_mode != "restart":
            raise ConfigError(f"name the schedules, which skip_mode {self.plan.skip_mode} has too many of")
        if schedules is None:
            ways = [Schedule(tuple(range(start, 0, -1))) for start in range(1, self.plan.first + 1)]
        else:
            ways = [as_schedule(schedule) for schedule in schedules]
            self.process.run_all_schedules([], ways)  # refuses wrong schedules
        pairs = [(image, seed) for image in images for seed in noise_seeds]
        values: dict[str, list[float]] = {name: [] for name in self.metrics}
        statistics: list[NDArray[np.float32]] = []
        for i in range(0, len(pairs), self.config.batch_size):
            episodes = self.begin(*zip(*pairs[i : i + self.config.batch_size], strict=True))
            beginnings = [episode.refinement for episode in episodes]
            firsts = [state for k, state in enumerate(beginnings, i) if k % len(noise_seeds) == 0]
            statistics += [features(state.lr_up.cpu().numpy()) for state in firsts]
            if schedules is None:
                chains = self.process.run_all_starts(beginnings)
            else:
                chains = self.process.run_all_schedules(beginnings, ways)
            states = [state for chain in chains for state, _ in chain]
            results = [sr for chain in chains for _, sr in chain]
            hr = [episode.hr for episode in episodes for _ in ways]
            for metrics in self._measure(states, results, hr):
                for name, value in metrics.items():
                    values[name].append(value)
        shape = len(images), len(noise_seeds), len(ways)
        names = [
            f"array {place}" if isinstance(image, np.ndarray) and image.ndim else self.pictures.names[int(image)]
            for place, image in enumerate(images)
        ]
        description = {
            "plan": self.plan.settings(), "size": self.config.image_size, "checkpoint": self.config.name,
            "metrics": {name: metric.lower_better for name, metric in self.metrics.items()},
            "forwards_per_call": self.unet.forwards_per_call, "reward": self.config.reward, "nfe_penalty": self.price,
        }  # fmt: skip
        arrays = {name: np.reshape(column, shape) for name, column in values.items()}
        seen = np.array(statistics, np.float32).reshape(-1, FEATURES)
        return OutcomeTable(tuple(ways), arrays, seen, tuple(names), description)

    def low_resolution(self, hr: Tensor) -> Tensor:
        """Return the low-resolution input of a target (3, H, W), (3, H / scale, W / scale) in [-1, 1]."""
        return self.degradation(hr[None], self.unet.scale)[0]

    def _strengths(self, hr: Tensor) -> Mapping[str, float]:
        """Return the strengths of the degradation of a target (3, H, W); empty if it was only shrunk."""
        return {} if self.degradation == PLAIN else self.degradation.recipe(picture_key(hr)).strengths

    def _key(self, rgb: Rgb) -> bytes:
        """Return the key of a picture's episodes: a hash of its pixels and of `identity`."""
        digest = hashlib.blake2b(rgb.tobytes(), digest_size=16)
        digest.update(json.dumps(self.identity, sort_keys=True).encode())
        return digest.digest()

    def _index(self, image: Any) -> int:
        """Return the index of a picture.

        Raises:
            ConfigError: it is not an index.
        """
        if not is_whole(image) or not 0 <= image < len(self.pictures):
            raise ConfigError(
                f"image must be an index from 0 to {len(self.pictures) - 1} or a uint8 array (height, width, 3), "
                f"got {image!r}"
            )
        return int(image)

    def _picture(self, image: int | Rgb | Crop) -> tuple[int, Hashable, Tensor, Tensor]:
        """Return index, memo key, target (3, H, W), and condition (C, H, W) of a picture."""
        rgb: Rgb | None = None
        if isinstance(image, np.ndarray) and image.ndim:
            index, rgb = -1, crop(image, self.config.image_size)
        elif isinstance(image, tuple) and len(image) == 3:
            index = self._index(image[0])
            rgb = self.pictures.cut(index, *image[1:])
        else:
            index = self._index(image)
            if index not in self._keys:
                rgb = self.pictures[index]
        key = self._keys[index] if rgb is None else self._key(rgb)
        hr, condition = (self.memo.get((name, key)) for name in ("target", "condition"))
        if hr is None or condition is None:
            if rgb is None:
                rgb = self.pictures[index]  # another picture if the file was replaced
                key = self._key(rgb)
            hr = to_tensor(rgb).to(self.config.device)
            condition = self._condition(hr)
            self.memo.put(("target", key), hr)
            self.memo.put(("condition", key), condition)
        if index >= 0 and not isinstance(image, tuple):
            self._keys[index] = key
        return index, key, hr, condition

    @torch.no_grad()
    def _condition(self, hr: Tensor) -> Tensor:
        """Return the condition (C, H, W) of a target.

        Raises:
            ConfigError: the size of the denoiser's condition is not that of its latents.
        """
        condition = self.unet.condition(self.low_resolution(hr)[None])[0]
        if condition.shape[1:] != self.latent_shape[1:] or condition.shape[0] < 3:
            raise ConfigError(
                f"a condition must have at least 3 channels and the latents' sides {self.latent_shape[1:]}, got "
                f"{tuple(condition.shape)} from {type(self.unet).__name__}.condition"
            )
        return condition

    def _measure(
        self, states: Sequence[Refinement], results: Sequence[Tensor], hr: Sequence[Tensor]
    ) -> list[Mapping[str, float]]:
        """Return all metrics of finished pictures; each metric is called once for those that are not remembered."""
        # values of functions are neither stored on disk nor read from there, since their names do not identify them
        lasting = all(metric.device is not None for metric in self.metrics.values())
        kind = ("metrics", *self._judge) if lasting else ("own metrics",)
        keys = [(*kind, state.key, state.noise_seed, state.trace) for state in states]
        found: list[Mapping[str, float]] = [self.memo.get(key) or {} for key in keys]
        # on disk there may be fewer or more metrics than are needed here
        missing = [i for i, known in enumerate(found) if not self.metrics.keys() <= known.keys()]
        for first in range(0, len(missing), self.config.batch_size):
            chunk = missing[first : first + self.config.batch_size]
            ours, truth = (torch.stack([x[i] for i in chunk]).to(self.metric_device) for x in (results, hr))
            columns = {name: metric(ours, truth) for name, metric in self.metrics.items()}
            for place, i in enumerate(chunk):
                found[i] = {**found[i], **{name: float(column[place]) for name, column in columns.items()}}
                self.memo.put(keys[i], found[i], lasting)
        return [{name: known[name] for name in self.metrics} for known in found]


def _place(image: Any) -> tuple[int, int] | None:
    """Return the first row and column of a crop; None for a whole picture."""
    return (image[1], image[2]) if isinstance(image, tuple) else None
