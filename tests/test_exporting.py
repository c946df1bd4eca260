"""Agents that plain Stable-Baselines3 has trained: exported, loaded, and used by the commands."""

import json
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from gymnasium import spaces
from PIL import Image
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecFrameStack, VecNormalize

import skipdiff_env  # noqa: F401  # registers the environments
from agents import AgentPolicy, export_agent, load_agent
from agents.algorithms import ALGORITHMS, MASKABLE, RECURRENT, algorithm_class
from agents.cli import main
from agents.networks.jump_extractor import JumpExtractor
from agents.playing import play
from agents.policies import make_space, space_settings
from agents.training.vec_env import SkipDiffVecEnv
from ddpm.checkpoints import save_checkpoint
from ddpm.util.checks import counted
from ddpm.util.errors import CheckpointError, ConfigError
from skipdiff_env.config import TaskConfig
from skipdiff_env.outcomes import OutcomeTable
from skipdiff_env.task import Task
from skipdiff_env.upscaler import Upscaler
from tests.test_substeps import with_substeps

N = 6
CONTINUOUS = ("sac", "td3", "ddpg", "tqc", "crossq")
QUICK: dict[str, Any] = {
    **{key: {"n_steps": 4, "batch_size": 4} for key in ("ppo", RECURRENT, MASKABLE, "trpo")},
    "a2c": {"n_steps": 4},
    **{key: {"learning_starts": 4, "batch_size": 4, "buffer_size": 50} for key in ("dqn", "qrdqn", *CONTINUOUS)},
}
FITTING = {
    "skip": [name for name in ALGORITHMS if name not in CONTINUOUS],
    "stride": [name for name in ALGORITHMS if name not in (*CONTINUOUS, "dqn", "qrdqn")],
    "continuous": [name for name in ALGORITHMS if name not in (MASKABLE, "dqn", "qrdqn")],
    "schedule": [name for name in ALGORITHMS if name not in CONTINUOUS],
}
PAIRS = [(kind, name) for kind, names in FITTING.items() for name in names]


@pytest.fixture(scope="module")
def detailed(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny checkpoint with substeps."""
    folder = tmp_path_factory.mktemp("substeps") / "net"
    save_checkpoint(with_substeps(), folder)
    return str(folder)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two pictures of 96 pixels, one smooth and one of noise."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for i, strength in enumerate((10, 200)):
        rgb = rng.integers(0, strength, (96, 96, 3), dtype=np.uint8)
        Image.fromarray(rgb).save(folder / f"{i}.png")
    return folder


def settings(detailed: str, pictures: Path, **changes: Any) -> dict[str, Any]:
    return {
        "checkpoint": detailed, "images": str(pictures), "image_size": 32, "steps": (1, N), "metric": "psnr",
        "noise_seeds": 2, "observation": "features", **changes,
    }  # fmt: skip


def make(kind: str, detailed: str, pictures: Path, **changes: Any) -> Any:
    if kind == "skip":
        changes = {"skip_mode": "jump", "fine_sampler": "ddim", **changes}
    ids = {"skip": "SkipDiff-v0", "stride": "SkipDiffStride-v0", "continuous": "SkipDiffContinuous-v0"}
    return gym.make(ids.get(kind, "SkipDiffBandit-v0"), **settings(detailed, pictures, **changes))


def train(name: str, env: Any, policy: str | None = None, steps: int = 12, **changes: Any) -> Any:
    make_model: Any = algorithm_class(name)
    arguments = {"policy_kwargs": {"net_arch": [8]}, "seed": 0, **QUICK[name], **changes}
    model = make_model(policy or ("MlpLstmPolicy" if name == RECURRENT else "MlpPolicy"), env, **arguments)
    model.learn(steps)
    return model


def run(*arguments: Any) -> str:
    result = CliRunner().invoke(main, [str(each) for each in arguments])
    assert result.exit_code == 0, (result.output, result.exception)
    return result.output


def played_by_the_model(
    name: str, model: Any, env: Any, image: int, seed: int
) -> tuple[list[Any], float, dict[str, Any]]:
    """Return the actions that Stable-Baselines3 itself takes in an episode, its reward and its last info."""
    observation, info = env.reset(options={"image": image, "noise_seed": seed})
    actions, reward, state, young, terminated = [], 0.0, None, np.ones(1, bool), False
    while not terminated:
        more: dict[str, Any] = {"action_masks": env.unwrapped.action_masks()} if name == MASKABLE else {}
        if name == RECURRENT:
            more = {"state": state, "episode_start": young}
        action, state = model.predict(observation, deterministic=True, **more)
        action = action if isinstance(env.action_space, spaces.Box | spaces.MultiDiscrete) else int(action)
        young[:] = False
        observation, reward, terminated, _, info = env.step(action)
        actions.append(np.asarray(action).tolist())
    return actions, float(reward), info


@pytest.mark.parametrize(("kind", "name"), PAIRS)
def test_every_algorithm_in_every_kind_of_decision(
    kind: str, name: str, detailed: str, pictures: Path, tmp_path: Path
) -> None:
    """An agent decides on the process what its model decides in the environment, and the upscaler takes it."""
    env = make(kind, detailed, pictures)
    model = train(name, env)
    export_agent(model, env, tmp_path / "agent", comment="a test")
    assert sorted(path.name for path in (tmp_path / "agent").iterdir()) == ["config.json", "model.safetensors"]
    agent = load_agent(tmp_path / "agent")
    assert agent.config.kind == kind
    assert agent.config.training["comment"] == "a test"
    assert agent.config.training["env_id"] == env.spec.id
    task = Task(TaskConfig.of(env.unwrapped.task.config.__dict__))
    pairs = [(0, 0), (1, 1), (0, 1)]
    episodes = play(task, AgentPolicy(agent), [0, 1, 0], [0, 1, 1])
    for (image, seed), episode in zip(pairs, episodes, strict=True):
        actions, reward, info = played_by_the_model(name, model, env, image, seed)
        assert episode.refinement.levels == info["levels"]
        assert episode.refinement.substeps == info["substeps"]
        assert episode.reward == pytest.approx(reward, abs=1e-3)
        if kind != "schedule":
            np.testing.assert_allclose(np.array(episode.actions), np.array(actions), atol=1e-5)
    upscaler = Upscaler(detailed, policy=AgentPolicy(agent), plan=agent.config.plan)
    (result,) = upscaler.upscale([torch.rand(3, 12, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1], [0])
    assert result.sr.shape == (3, 48, 64)
    assert len(result.tiles) > 1
    assert all(tile.schedule.length == N for tile in result.tiles)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        pytest.param("skip", "ppo", marks=pytest.mark.slow),
        ("stride", "ppo"),
        ("continuous", "sac"),
        ("schedule", "dqn"),
    ],
)
def test_commands_take_exported_agents(kind: str, name: str, detailed: str, pictures: Path, tmp_path: Path) -> None:
    env = make(kind, detailed, pictures)
    model = train(name, env)
    export_agent(model, env, tmp_path / "agent")
    common = (f"--agent={tmp_path / 'agent'}", f"--checkpoint={detailed}")
    enlarged = run(
        "upscale", pictures / "0.png", "-o", tmp_path / "large.png", f"--map={tmp_path / 'map.png'}", *common
    )
    assert "tiles" in enlarged or "forward" in enlarged
    with Image.open(tmp_path / "large.png") as large:
        assert large.size == (384, 384)
    printed = run("enjoy", *common, f"--images={pictures}", "-o", tmp_path / "x.gif", "--image=1", "--noise-seed=1")
    _, reward, info = played_by_the_model(name, model, env, 1, 1)
    assert f"{counted(info['nfe'], 'forward')}, reward {reward:.4f}, psnr" in printed
    words = {"skip": "t =   6  ", "stride": "level   6  to level", "continuous": "level   6  to level"}
    assert words.get(kind, "schedule 6") in printed
    table = run(
        "evaluate", *common, f"--images={pictures}", "--image-size=96", "--metrics=psnr,lpips", "--no-paper",
    )  # fmt: skip
    assert "| agent agent |" in table


@pytest.mark.parametrize(
    ("env_id", "name"),
    [
        ("SkipDiffBandit-v0", "dqn"),
        ("SkipDiffStride-v0", "ppo"),
        ("SkipDiffContinuous-v0", "td3"),
        pytest.param("SkipDiff-v0", "ppo", marks=pytest.mark.slow),
    ],
)
def test_evaluation_by_an_environment(env_id: str, name: str, detailed: str, photos: Path, tmp_path: Path) -> None:
    """The rewards in the table are the mean rewards of the environment's episodes, those of fixed schedules as well."""
    images = [str(photos / "0.png"), str(photos / "1.png")]
    env: Any = gym.make(env_id, checkpoint=detailed, images=images)
    model = train(name, env, steps=4)
    export_agent(model, env, tmp_path / "mine")
    out = tmp_path / "out"
    printed = run(
        "evaluate", f"--env={env_id}", f"--checkpoint={detailed}", *(f"--images={image}" for image in images),
        f"--agent={tmp_path / 'mine'}", f"--out={out}", "--seeds=2", "--pictures=0",
        f"--metrics={env.unwrapped.task.metric.name}",
    )  # fmt: skip
    table = {row["method"]: row for row in json.loads((out / "table.json").read_text(encoding="utf-8"))}
    pairs = [(image, seed) for image in range(2) for seed in range(2)]
    rewards = [played_by_the_model(name, model, env, image, seed)[1] for image, seed in pairs]
    assert np.std(rewards) > 1e-4
    assert table["agent mine"]["reward"] == pytest.approx(np.mean(rewards), abs=1e-4)
    assert f"{table['agent mine']['reward']:.4f} ±" in printed
    task = env.unwrapped.task
    if env_id == "SkipDiff-v0":
        fixed = task.schedule_outcomes(range(2), [0, 1]).rewards().mean(axis=(0, 1))
        assert table["CSA(10) + FSR(3)"]["reward"] == pytest.approx(fixed[2], abs=1e-4)
        assert table["agent mine"]["regret"] > 0
        return
    fixed = task.schedule_outcomes(range(2), [0, 1], ["20*4", "20*8"]).rewards().mean(axis=(0, 1))
    for way, reward in zip(("20*4", "20*8"), fixed, strict=True):
        assert table[f"ddim, levels {way}"]["reward"] == pytest.approx(reward, abs=1e-4)
    assert "DDPM-100" not in table
    best = next(row for method, row in table.items() if method.startswith("best fixed schedule"))
    assert best["reward"] == pytest.approx(max(row["reward"] for name, row in table.items() if ", levels " in name))


def test_latents_may_be_stacked_and_conditions_resized(detailed: str, pictures: Path, tmp_path: Path) -> None:
    """`CnnPolicy` on the latents of an episode, `MultiInputPolicy` with a `JumpExtractor`."""
    env = make("skip", detailed, pictures, observation="latent")
    stack = VecFrameStack(DummyVecEnv([lambda: env]), n_stack=N - 1, channels_order="first")
    model = train("ppo", stack, "MlpPolicy")
    export_agent(model, stack, tmp_path / "stacked")
    task = env.unwrapped.task
    for image in (0, 1):
        (episode,) = play(task, AgentPolicy(load_agent(tmp_path / "stacked")), [image], [1])
        stack.set_options({"image": image, "noise_seed": 1})
        observation: Any = stack.reset()
        for action in episode.actions:
            ours = model.predict(observation, deterministic=True)[0]
            assert ours[0] == action
            observation = stack.step(ours)[0]
    env = make("stride", detailed, pictures, observation="dict", nfe_penalty=(0.001, 0.1))
    kwargs = {"features_extractor_class": JumpExtractor, "features_extractor_kwargs": {"crop_size": 16}}
    model = train("ppo", env, "MultiInputPolicy", policy_kwargs={**kwargs, "activation_fn": torch.nn.ELU})
    export_agent(model, env, tmp_path / "dict")
    agent = load_agent(tmp_path / "dict")
    assert agent.config.price_range == (0.001, 0.1)
    assert json.loads((tmp_path / "dict" / "config.json").read_text(encoding="utf-8"))["policy"]["activation"] == "ELU"
    upscaler = Upscaler(detailed, policy=AgentPolicy(agent, quality=1.0), plan=agent.config.plan, tile=48)
    assert upscaler.upscale([torch.zeros(3, 20, 20)], [0])[0].sr.shape == (3, 80, 80)


def test_what_environments_may_be_given(detailed: str, pictures: Path, tmp_path: Path) -> None:
    """Gymnasium's, wrapped ones, batched ones, and the VecEnv of both; from its task an agent is the same."""
    env = make("schedule", detailed, pictures)
    model = train("ppo", env)
    batched: Any = gym.make_vec(
        "SkipDiffBandit-v0", num_envs=2, autoreset_mode="SameStep", **settings(detailed, pictures)
    )
    given: list[Any] = [
        env,
        env.unwrapped,
        batched,
        SkipDiffVecEnv(batched),
        DummyVecEnv([lambda: env]),
        model.get_env(),
    ]
    for i, each in enumerate(given):
        export_agent(model, each, tmp_path / str(i))
        text = (tmp_path / str(i) / "config.json").read_text(encoding="utf-8")
        assert (
            json.loads(text)["schedules"]
            == json.loads((tmp_path / "0" / "config.json").read_text(encoding="utf-8"))["schedules"]
        )


def test_the_benchmark_trains_agents(tmp_path: Path) -> None:
    """A model of the table of outcomes is an agent that chooses among the schedules of the table."""
    given: list[Any] = [gym.make("SkipDiffBanditTable-v0"), make_vec_env("SkipDiffBanditTable-v0", 2)]
    for i, env in enumerate(given):
        model = train("ppo", env)
        export_agent(model, env, tmp_path / str(i))
        agent = load_agent(tmp_path / str(i))
        table = OutcomeTable.load("natural-x4")
        assert agent.config.schedules == tuple(map(str, table.schedules))
        assert agent.config.training["env"]["checkpoint"] == "natural-x4"
        chosen = agent.predict(table.features[:20])[0]
        np.testing.assert_array_equal(chosen, model.predict(table.features[:20], deterministic=True)[0])


def test_what_cannot_be_exported(detailed: str, pictures: Path, tmp_path: Path) -> None:
    env = make("schedule", detailed, pictures)
    model = train("ppo", env)

    def refused(message: str, model: Any, env: Any) -> None:
        with pytest.raises(ConfigError, match=message):
            export_agent(model, env, tmp_path / "agent")
        assert not (tmp_path / "agent").exists()

    refused("an agent is exported with the environment of a network", model, gym.make("CartPole-v1"))
    refused("an agent is exported with the environment of a network", model, gym.make("SkipDiffTable-v0"))
    refused(
        "an agent is exported with the environment of a network", model, DummyVecEnv([lambda: gym.make("CartPole-v1")])
    )
    refused("the environment takes actions of", model, make("stride", detailed, pictures))
    priced = make("schedule", detailed, pictures, nfe_penalty=(0.001, 0.1))
    refused("train without wrappers that change observations", model, priced)
    normalized: VecEnv = VecNormalize(DummyVecEnv([lambda: env]))
    refused("trained with VecNormalize", train("ppo", normalized), env)
    own = type("Own", (type(model.policy),), {})
    refused("a policy of the class Own cannot be built again", PPO(own, env, **QUICK["ppo"]), env)
    extractor = type("Mine", (JumpExtractor,), {})
    dicts = make("schedule", detailed, pictures, observation="dict")
    refused(
        "the features extractor Mine is not known",
        PPO("MultiInputPolicy", dicts, policy_kwargs={"features_extractor_class": extractor}, **QUICK["ppo"]),
        dicts,
    )
    activation = type("Mine", (torch.nn.ReLU,), {})
    refused(
        "activation_fn must be a class of torch.nn",
        PPO("MlpPolicy", env, policy_kwargs={"activation_fn": activation}, **QUICK["ppo"]),
        env,
    )
    other = type("Other", (PPO,), {})
    refused("Other is none of the algorithms ppo", other("MlpPolicy", env, **QUICK["ppo"]), env)


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("policy", "class"), "EvilPolicy", "cannot be built"),
        (("policy", "features_extractor"), "os.system", "cannot be built"),
        (("policy", "activation"), "Parameter", "is not an activation"),
        (
            ("policy", "observation_space"),
            {"Box": {"low": 0, "high": 1, "shape": [2**40], "dtype": "float32"}},
            "space",
        ),
        (("policy", "settings", "net_arch"), "wide", "cannot be built"),
        (("policy", "settings", "net_arch"), [9], "does not fit"),
        (("policy",), None, "policy must be a mapping"),
        (("kind",), "guess", "kind must be one of skip, stride, continuous, schedule"),
        (("kind",), "stride", 'agents of the kind "stride" do not take schedules'),
        (("plan",), None, "a setting is missing or of the wrong type"),
        (("schedules",), ["6*x", "6"], "levels must be falling whole numbers"),
        (("schedules",), ["5", "4"], "levels must be falling whole numbers that begin with 6"),
    ],
)
def test_damaged_files(
    place: tuple[str, ...], value: Any, message: str, detailed: str, pictures: Path, tmp_path: Path
) -> None:
    env = make("schedule", detailed, pictures)
    export_agent(train("ppo", env), env, tmp_path / "agent")
    file = tmp_path / "agent" / "config.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    part = content
    for name in place[:-1]:
        part = part[name]
    part[place[-1]] = value
    file.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises((ConfigError, CheckpointError), match=message):
        load_agent(tmp_path / "agent")


@pytest.mark.parametrize(("kind", "name"), [("stride", "ppo"), ("continuous", "sac"), ("schedule", "dqn")])
def test_weights_that_are_no_numbers(
    kind: str, name: str, detailed: str, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.distributions.Distribution, "_validate_args", False)  # as torch.compile leaves it
    env = make(kind, detailed, pictures)
    agent = export_agent(train(name, env), env, tmp_path / "agent")
    with torch.no_grad():
        for parameter in agent.policy.parameters():
            parameter.fill_(float("nan"))
    with pytest.raises(CheckpointError, match="numbers that are not finite"):
        play(env.unwrapped.task, AgentPolicy(agent), [0], [0])


def test_a_network_without_substeps_is_refused(detailed: str, checkpoint: str, pictures: Path, tmp_path: Path) -> None:
    env = make("stride", detailed, pictures)
    agent = export_agent(train("ppo", env), env, tmp_path / "agent")
    with pytest.raises(ConfigError, match="the network has learnt no substeps, got 8 in decisions stride"):
        Upscaler(checkpoint, policy=AgentPolicy(agent), plan=agent.config.plan)


def test_spaces_survive() -> None:
    rng = np.random.default_rng(0)
    low = rng.random((2, 3)).astype(np.float32)
    every: list[spaces.Space[Any]] = [
        spaces.Box(low, low + 1), spaces.Box(-1, 1, (4,), np.float16), spaces.Discrete(3), spaces.MultiDiscrete([2, 5]),
        spaces.Dict({"a": spaces.Box(0, 1, (1,), np.float32), "b": spaces.Discrete(2)}),
    ]  # fmt: skip
    for space in every:
        assert make_space(json.loads(json.dumps(space_settings(space)))) == space
    with pytest.raises(ConfigError, match="must be Box, Discrete, MultiDiscrete or Dict"):
        space_settings(spaces.Text(3))
