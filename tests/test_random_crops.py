"""Random crops, and noises of their own."""

import pickle
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from PIL import Image

from ddpm.util.errors import ConfigError, ImageError
from skipdiff_env.env import SkipDiffEnv
from skipdiff_env.pictures import PHOTOGRAPHS, Pictures
from skipdiff_env.vector_env import SkipDiffVectorEnv


@pytest.fixture
def settings(checkpoint: str, photos: Path) -> dict[str, Any]:
    return {
        "checkpoint": checkpoint, "images": str(photos), "image_size": 32, "steps": (20, 5), "metric": "psnr",
        "noise_seeds": 1, "crop": "random",
    }  # fmt: skip


def test_an_episode_is_about_the_crop_that_it_says(settings: dict[str, Any], photos: Path) -> None:
    """Its target is that part of the photograph, and the same crop again is the same episode."""
    env = SkipDiffEnv(**settings)
    again, places = SkipDiffEnv(**settings), set()
    for seed in range(12):
        observation, info = env.reset(seed=seed)
        top, left = info["crop"]
        with Image.open(photos / f"{info['image_index']}.png") as photograph:
            rgb = np.asarray(photograph)[top : top + 32, left : left + 32]
        assert env.hr is not None
        np.testing.assert_allclose(env.hr, rgb.transpose(2, 0, 1) / 127.5 - 1, atol=1e-6)
        other, told = again.reset(options={"image": info["image_index"], "noise_seed": 0, "crop": (top, left)})
        np.testing.assert_array_equal(observation, other)
        assert told == info
        places.add((info["image_index"], top, left))
    assert len(places) == 12


def test_noise_belongs_to_crop_and_seed(settings: dict[str, Any]) -> None:
    """One noise seed gives two crops two noises; in the centres of pictures it is one and the same."""

    def noises(**changes: Any) -> list[np.ndarray]:
        jumps = {"steps": (1, 5), "skip_mode": "jump", "fine_sampler": "ddim", "noise_seeds": 2}
        env = SkipDiffEnv(**{**settings, **jumps, **changes})
        return [
            env.reset(options={"image": image, "noise_seed": seed, **({"crop": crop} if crop else {})})[0]
            for image, seed, crop in options
        ]

    options: list[tuple[int, int, tuple[int, int] | None]]
    options = [(0, 0, (0, 0)), (0, 0, (0, 1)), (1, 0, (0, 0)), (0, 1, (0, 0))]
    drawn = noises()
    for i in range(4):
        assert abs(drawn[i].mean()) < 0.1
        assert drawn[i].std() == pytest.approx(1, abs=0.05)
        for j in range(i):
            assert abs(np.corrcoef(drawn[i].ravel(), drawn[j].ravel())[0, 1]) < 0.1
    options = [(0, 0, None), (1, 0, None), (0, 1, None)]
    first, second, other = noises(crop="center")
    np.testing.assert_array_equal(first, second)
    assert not np.array_equal(first, other)


def test_batched_crops_are_those_of_scalar_environments(settings: dict[str, Any]) -> None:
    batch = SkipDiffVectorEnv(3, autoreset_mode="SameStep", **settings)
    scalar = [SkipDiffEnv(**settings) for _ in range(3)]
    observations, infos = batch.reset(seed=[5, 6, 7])
    for i, env in enumerate(scalar):
        observation, info = env.reset(seed=5 + i)
        np.testing.assert_allclose(observations[i], observation, atol=1e-5)
        assert infos["crop"][i] == info["crop"]
    for _ in range(4):
        observations, rewards, _, _, infos = batch.step(np.array([0, 1, 0]))
        ends = [env.step(action) for env, action in zip(scalar, (0, 1, 0), strict=True)]
    np.testing.assert_allclose(rewards, [end[1] for end in ends], atol=1e-3)


def test_states_survive(settings: dict[str, Any]) -> None:
    env, other = SkipDiffEnv(**settings), SkipDiffEnv(**settings)
    env.reset(seed=3)
    env.step(0)
    state = pickle.loads(pickle.dumps(env.get_state()))
    np.testing.assert_array_equal(other.set_state(state), env.get_state()["episode"]["latent"])
    for action in (0, 1, 0):
        ours, theirs = env.step(action), other.step(action)
        assert ours[1] == pytest.approx(theirs[1], abs=1e-5)
        assert ours[4] == theirs[4]


def test_photographs_of_scikit_image(checkpoint: str) -> None:
    """They are whole, so a crop lies anywhere."""
    whole = Pictures(None, 64, "train", whole=True)
    assert whole.names == [name for name, split in PHOTOGRAPHS.items() if split == "train"]
    rng = np.random.default_rng(0)
    for index in range(len(whole)):
        _, top, left = whole.draw(index, rng)
        assert whole.cut(index, top, left).shape == (64, 64, 3)
        assert whole[index].shape == (64, 64, 3)
    env: Any = gym.make("SkipDiffBandit-v0", checkpoint=checkpoint, split="test", crop="random", steps=(1, 4))
    assert env.reset(seed=0)[1]["crop"] != env.reset(seed=1)[1]["crop"]
    with pytest.raises(ImageError, match="have no crop of 700 x 700"):
        Pictures(None, 700, whole=True)


def test_what_is_refused(settings: dict[str, Any], photos: Path) -> None:
    with pytest.raises(ConfigError, match="crop must be one of center, random, got 'left'"):
        SkipDiffEnv(**{**settings, "crop": "left"})
    env = SkipDiffEnv(**settings)
    for crop, message in (
        ((97, 0), r"at most at row 96 and column 96 of picture 0, got 97, 0"),
        ((0, -1), "got 0, -1"),
        ((0.5, 1), "crop must be the first row and column, two whole numbers"),
        (3, "crop must be the first row and column"),
    ):
        with pytest.raises(ConfigError, match=message):
            env.reset(options={"image": 0, "crop": crop})
    with pytest.raises(ConfigError, match="image must be an index from 0 to 3"):
        env.reset(options={"image": 4})
    with pytest.raises(ConfigError, match="unknown reset option crop; known are image, noise_seed and nfe_penalty"):
        SkipDiffEnv(**{**settings, "crop": "center"}).reset(options={"crop": (0, 0)})
    Image.new("RGB", (64, 64)).save(photos / "0.png")
    with pytest.raises(ImageError, match=r"0\.png is no longer 128 x 128"):
        env.reset(options={"image": 0})
