"""Settings of the wrong type or size are named, wherever they come from."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import pytest

from agents.agent import AgentConfig
from agents.cli.options import named_agents
from agents.training.config import AgentTrainingConfig, resumed_config
from ddpm.training import trainer
from ddpm.training.configs import DDPMConfig, PredictorConfig
from ddpm.util.checks import check_types, is_number, shown
from ddpm.util.errors import ConfigError


@dataclass(frozen=True)
class Settings:
    """One field of each type."""

    whole: int = 1
    number: float = 0.5
    yes: bool = True
    word: str = "a"
    choice: Literal["a", "b"] = "a"
    perhaps: float | None = None
    several: Sequence[str] = ("a",)
    pair: tuple[float, float] | None = (1, 2)
    named: Mapping[str, Any] | None = None
    anything: Any = None


@pytest.mark.parametrize(
    "changes",
    [
        {"whole": -3}, {"number": 1}, {"yes": False}, {"choice": "b"}, {"perhaps": 2}, {"several": []},
        {"pair": [0.5, 1]}, {"named": {"a": 1}}, {"anything": object()}, {"whole": 2**63 - 1},
    ],
)  # fmt: skip
def test_what_fits(changes: dict[str, Any]) -> None:
    check_types(replace(Settings(), **changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"whole": 1.0}, "whole must be a whole number, got 1.0"),
        ({"whole": True}, "whole must be a whole number, got True"),
        ({"whole": 2**63}, "whole must be at most 9223372036854775807, got 9223372036854775808"),
        ({"number": "1"}, "number must be a number, got '1'"),
        ({"number": float("nan")}, "number must be a number, got nan"),
        ({"number": 10**400}, "number must be at most 9223372036854775807, got 10000"),
        ({"yes": 1}, "yes must be true or false, got 1"),
        ({"word": None}, "word must be a word, got None"),
        ({"choice": "c"}, "choice must be one of a, b, got 'c'"),
        ({"choice": ["a"]}, "choice must be one of a, b, got"),
        ({"perhaps": []}, "perhaps must be a number or none, got"),
        ({"several": "a"}, "several must be a list, got 'a'"),
        ({"several": [1]}, "several must be a list, got"),
        ({"pair": ["a", "b"]}, "pair must be a list or none, got"),
        ({"named": [1]}, "named must be a mapping or none, got"),
    ],
)
def test_what_does_not_fit(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        check_types(replace(Settings(), **changes))
    assert str(raised.value).startswith(message)
    assert len(str(raised.value)) < 200


def test_numbers_that_no_float_holds() -> None:
    assert not any(map(is_number, (-1, float("inf"), float("nan"), 10**400, True, "1")))
    assert all(map(is_number, (0, 1e308, 10**300)))


@pytest.mark.parametrize("changes", [{"channels": 10**9}, {"scale": 65}, {"channels": 2**63 - 1}, {"scale": 0}])
def test_sizes_of_a_predictor(changes: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=f"{next(iter(changes))} must be at"):
        PredictorConfig(images=["photos"], **changes)  # type: ignore[arg-type]


def test_prices_of_an_agent_that_no_float_holds() -> None:
    content = {
        "algorithm": "ppo", "plan": {"S": 10, "N": 10}, "policy": {}, "image_size": 16, "latent_bound": 1.0,
        "price_range": [0.1, 10**400],
    }  # fmt: skip
    with pytest.raises(ConfigError, match="a setting is missing or of the wrong type"):
        AgentConfig.read(content)


def test_names_of_agents_that_are_links_in_a_circle(tmp_path: Path) -> None:
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    assert named_agents([str(tmp_path / "circle")]) == {"circle": str(tmp_path / "circle")}


def test_long_values_are_cut() -> None:
    assert shown("a" * 300) == f"'{'a' * 76}..."
    assert shown(10**5000) == "a very large number"


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("batch_size", "x", "batch_size must be a whole number, got 'x'"),
        ("unet", 3, "unet must be a mapping, got 3"),
        ("images", "here", "images must be a list, got 'here'"),
        ("lr_schedule", [], "lr_schedule must be one of cosine, step, constant"),
        ("iterations", 10**12, "iterations must be at most 1000000000"),
    ],
)
def test_damaged_runs_of_the_net(name: str, value: Any, message: str, tmp_path: Path) -> None:
    config = asdict(DDPMConfig(images=["photos"])) | {name: value}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        trainer.resumed_config(DDPMConfig, tmp_path, {})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"eval_every": "x"}, "eval_every must be a whole number or none, got 'x'"),
        ({"env": [1]}, "env must be a word"),
        ({"env_kwargs": [1]}, "env_kwargs must be a mapping"),
        ({"hyperparameters": {"n_envs": None}}, "n_envs must be a whole number, got None"),
        ({"hyperparameters": {"n_envs": 10**9}}, "n_envs must be at most 65536"),
        ({"hyperparameters": {"n_epochs": 0}}, "n_epochs must be a whole number of at least 1, got 0"),
        ({"hyperparameters": {"n_epochs": []}}, r"n_epochs must be a whole number, got \[\]"),
        ({"hyperparameters": 3}, "hyperparameters must be a mapping, got 3"),
        ({"unknown": 3}, "does not hold the settings of a training"),
    ],
)
def test_damaged_runs_of_agents(content: dict[str, Any], message: str, tmp_path: Path) -> None:
    config = asdict(AgentTrainingConfig()) | content
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        resumed_config(tmp_path, {})


@pytest.mark.parametrize("content", ["[1]", "3", "null"])
def test_configurations_that_are_no_mapping(content: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(content, encoding="utf-8")
    for read in (lambda: trainer.resumed_config(DDPMConfig, tmp_path, {}), lambda: resumed_config(tmp_path, {})):
        with pytest.raises(ConfigError, match=r"config\.json"):
            read()
