"""The Gymnasium environments SkipDiff-v0 and its variants, their batched twins, and the upscaler.

Importing this package registers the environments and is cheap: torch is imported when a name below is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from gymnasium.envs.registration import register, registry

if TYPE_CHECKING:
    from skipdiff_env.env import SkipDiffEnv
    from skipdiff_env.metrics import make_metric
    from skipdiff_env.outcomes import OutcomeTable, Score
    from skipdiff_env.rules import Action
    from skipdiff_env.scoring import score
    from skipdiff_env.table_env import (
        SkipDiffBanditTableEnv,
        SkipDiffContinuousTableEnv,
        SkipDiffStrideTableEnv,
        SkipDiffTableEnv,
        SkipDiffTableVectorEnv,
    )
    from skipdiff_env.upscaler import Upscaler
    from skipdiff_env.vector_env import SkipDiffVectorEnv

__all__ = [
    "Action",
    "OutcomeTable",
    "Score",
    "SkipDiffBanditTableEnv",
    "SkipDiffContinuousTableEnv",
    "SkipDiffEnv",
    "SkipDiffStrideTableEnv",
    "SkipDiffTableEnv",
    "SkipDiffTableVectorEnv",
    "SkipDiffVectorEnv",
    "Upscaler",
    "make_metric",
    "score",
]

_MODULES = {
    "Action": "rules",
    "OutcomeTable": "outcomes",
    "Score": "outcomes",
    "SkipDiffBanditTableEnv": "table_env",
    "SkipDiffContinuousTableEnv": "table_env",
    "SkipDiffStrideTableEnv": "table_env",
    "SkipDiffEnv": "env",
    "SkipDiffTableEnv": "table_env",
    "SkipDiffTableVectorEnv": "table_env",
    "SkipDiffVectorEnv": "vector_env",
    "Upscaler": "upscaler",
    "make_metric": "metrics",
    "score": "scoring",
}

_JUMP: dict[str, Any] = {
    "checkpoint": "natural-x4", "steps": [1, 20], "skip_mode": "jump", "fine_sampler": "ddim", "observation": "dict",
    "metric": "lpips", "reward": "negative", "nfe_penalty": 0.002,
}  # fmt: skip

# Arguments of the environments whose env steps are forwards or schedules.
_FORWARDS: dict[str, Any] = {**_JUMP, "observation": "features", "image_size": 64}
_BATCHED = "vector_env:SkipDiffVectorEnv"
# The registered environments: id → (scalar, batched, arguments).
VARIANTS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "SkipDiff-v0": ("env:SkipDiffEnv", "vector_env:SkipDiffVectorEnv", {}),
    "SkipDiffFaces-v0": (
        "variants:SkipDiffFacesEnv", "vector_env:SkipDiffVectorEnv", {"checkpoint": "faces-x8", "steps": [10, 10]},
    ),
    "SkipDiffJump-v0": ("variants:SkipDiffJumpEnv", "vector_env:SkipDiffVectorEnv", {**_JUMP, "image_size": 64}),
    "SkipDiffJump128-v0": ("variants:SkipDiffJump128Env", "vector_env:SkipDiffVectorEnv", {**_JUMP, "image_size": 128}),
    "SkipDiffPhoto-v0": (
        "variants:SkipDiffPhotoEnv", "vector_env:SkipDiffVectorEnv",
        {**_JUMP, "checkpoint": "photo-x4", "image_size": 64, "degradation": "photo"},
    ),
    "SkipDiffBandit-v0": ("variants:SkipDiffBanditEnv", _BATCHED, {**_FORWARDS, "decisions": "schedule"}),
    "SkipDiffStride-v0": ("variants:SkipDiffStrideEnv", _BATCHED, {**_FORWARDS, "decisions": "stride"}),
    "SkipDiffContinuous-v0": ("variants:SkipDiffContinuousEnv", _BATCHED, {**_FORWARDS, "decisions": "continuous"}),
    "SkipDiffBanditTable-v0": (
        "table_env:SkipDiffBanditTableEnv", "table_env:SkipDiffTableVectorEnv",
        {"table": "natural-x4", "decisions": "schedule"},
    ),
    "SkipDiffStrideTable-v0": (
        "table_env:SkipDiffStrideTableEnv", "table_env:SkipDiffTableVectorEnv",
        {"table": "natural-x4-stride", "decisions": "stride"},
    ),
    "SkipDiffContinuousTable-v0": (
        "table_env:SkipDiffContinuousTableEnv", "table_env:SkipDiffTableVectorEnv",
        {"table": "natural-x4-stride", "decisions": "continuous"},
    ),
    "SkipDiffTable-v0": (
        "table_env:SkipDiffTableEnv", "table_env:SkipDiffTableVectorEnv",
        {"table": "natural-x4-skip", "decisions": "skip", "split": None, "reward": "negative"},
    ),
}  # fmt: skip

for _id, (_scalar, _batched, _arguments) in VARIANTS.items():
    if _id not in registry:
        register(
            _id,
            entry_point=f"skipdiff_env.{_scalar}",
            vector_entry_point=f"skipdiff_env.{_batched}",
            # no limit, since no episode is truncated; an episode may begin with set_state(), which Gymnasium's wrappers
            # do not know, and the environments check order and actions themselves
            order_enforce=False,
            disable_env_checker=True,
            kwargs=_arguments,
        )


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
