"""The plan of an episode: what it refuses, and where its parts come from."""

from typing import Any

import pytest

from ddpm.util.errors import ConfigError
from skipdiff_env.plan import Plan
from tests.conftest import tiny_unet

SETTINGS = tiny_unet(diffusion_steps=12, coarse_steps=3, coarse_sampler="ddim:0.9", start=None).settings
AGENT = Plan(6, 2, "dpmsolver++", first_step=9)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"S": 0}, "S of steps S,N must be a whole number of at least 1, got 0"),
        ({"N": 2.0}, "N of steps S,N must be a whole number"),
        ({"skip_mode": "hold"}, "skip_mode must be one of restart, jump, got 'hold'"),
        (
            {"coarse_sampler": "dpm"},
            r"coarse_sampler must be one of ddpm, ddim, dpmsolver\+\+, or ddim:ETA .* got 'dpm'",
        ),
        ({"fine_sampler": "dpmsolver++"}, "fine_sampler must be ddpm, ddim, or ddim:ETA"),
        ({"fine_sampler": "ddim:2"}, "fine_sampler must be one of"),
        ({"first_step": 9}, "first_step must be a whole number in 10 … 100"),
        ({"first_step": 101}, "first_step must be a whole number in 10 … 100"),
        ({"first_step": 20, "skip_mode": "jump"}, "with skip_mode jump the first decision is at step N = 10"),
    ],
)
def test_what_is_no_plan(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Plan(**arguments)


@pytest.mark.parametrize(
    ("agent", "given", "expected"),
    [
        (None, {}, Plan(3, 4, "ddim:0.9")),
        (None, {"coarse_sampler": "ddpm"}, Plan(3, 4)),
        (None, {"steps": (2, 6)}, Plan(2, 6, "ddim:0.9")),
        (None, {"steps": [1, 20], "skip_mode": "jump", "fine_sampler": "ddim"}, Plan(1, 20, "ddpm", "ddim", "jump")),
        (AGENT, {}, AGENT),
        (AGENT, {"coarse_sampler": "ddpm"}, Plan(6, 2, first_step=9)),
        (AGENT, {"steps": (6, 2)}, AGENT),
        (AGENT, {"steps": (3, 4)}, Plan(3, 4, "dpmsolver++")),
        (AGENT, {"steps": (3, 4), "first_step": 5}, Plan(3, 4, "dpmsolver++", first_step=5)),
        (AGENT, {"coarse_sampler": None, "steps": None}, AGENT),
    ],
)
def test_asked_for_or_the_agents_or_the_checkpoints(agent: Plan | None, given: dict[str, Any], expected: Plan) -> None:
    assert Plan.resolve(SETTINGS, agent, **given) == expected


def test_without_a_first_step_it_is_n() -> None:
    assert Plan(3, 4) == Plan(3, 4, first_step=4)
    assert (Plan(3, 4).length, Plan(3, 4).decisions, Plan(3, 4).coarse_forwards) == (12, 3, 2)
    assert Plan(**Plan(3, 4, "ddim").settings()) == Plan(3, 4, "ddim")


def test_what_does_not_fit_the_checkpoint() -> None:
    with pytest.raises(
        ConfigError, match="must multiply to the 12 diffusion steps of the checkpoint, got 5,3; try one of 2,6"
    ):
        Plan.resolve(SETTINGS, steps=(5, 3))
    with pytest.raises(ConfigError, match="two whole numbers"):
        Plan.resolve(SETTINGS, steps="34")
    with pytest.raises(ConfigError, match="unknown part of a plan: coarse"):
        Plan.resolve(SETTINGS, coarse="ddim")
