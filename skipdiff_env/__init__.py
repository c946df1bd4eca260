"""The Gymnasium environments SkipDiff-v0 and its variants, their batched twins, and the upscaler.

Importing this package registers the environments and is cheap: torch is imported when a name below is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from gymnasium.envs.registration import register, registry

from skipdiff_env.rules import PRICE

if TYPE_CHECKING:
    from skipdiff_env.env import SkipDiffEnv as SkipDiffEnv
    from skipdiff_env.metrics import make_metric as make_metric
    from skipdiff_env.outcomes import OutcomeTable as OutcomeTable
    from skipdiff_env.outcomes import Score as Score
    from skipdiff_env.rules import Action as Action
    from skipdiff_env.scoring import score as score
    from skipdiff_env.table_env import SkipDiffTableEnv as SkipDiffTableEnv
    from skipdiff_env.table_env import SkipDiffTableVectorEnv as SkipDiffTableVectorEnv
    from skipdiff_env.upscaler import Upscaler as Upscaler
    from skipdiff_env.vector_env import SkipDiffVectorEnv as SkipDiffVectorEnv

# The names of this package, and their modules.
_MODULES = {
    "Action": "rules",
    "OutcomeTable": "outcomes",
    "Score": "outcomes",
    "SkipDiffEnv": "env",
    "SkipDiffTableEnv": "table_env",
    "SkipDiffTableVectorEnv": "table_env",
    "SkipDiffVectorEnv": "vector_env",
    "Upscaler": "upscaler",
    "make_metric": "metrics",
    "score": "scoring",
}
__all__ = [*_MODULES]

_JUMP: dict[str, Any] = {
    "checkpoint": "natural-x4", "steps": [1, 20], "skip_mode": "jump", "fine_sampler": "ddim", "observation": "dict",
    "metric": "lpips", "reward": "negative", "nfe_penalty": PRICE,
}  # fmt: skip
# Arguments of the environments whose env steps are forwards or schedules.
_FORWARDS: dict[str, Any] = {**_JUMP, "observation": "features", "image_size": 64}
# The registered environments: id → arguments.
VARIANTS: dict[str, dict[str, Any]] = {
    "SkipDiff-v0": {},
    "SkipDiffFaces-v0": {"checkpoint": "faces-x8", "steps": [10, 10]},
    "SkipDiffJump-v0": {**_JUMP, "image_size": 64},
    "SkipDiffJump128-v0": {**_JUMP, "image_size": 128},
    "SkipDiffPhoto-v0": {**_JUMP, "checkpoint": "photo-x4", "image_size": 64, "degradation": "photo"},
    "SkipDiffBandit-v0": {**_FORWARDS, "decisions": "schedule"},
    "SkipDiffStride-v0": {**_FORWARDS, "decisions": "stride"},
    "SkipDiffContinuous-v0": {**_FORWARDS, "decisions": "continuous"},
    "SkipDiffBanditTable-v0": {"table": "natural-x4", "decisions": "schedule"},
    "SkipDiffStrideTable-v0": {"table": "natural-x4-stride", "decisions": "stride"},
    "SkipDiffContinuousTable-v0": {"table": "natural-x4-stride", "decisions": "continuous"},
    "SkipDiffTable-v0": {"table": "natural-x4-skip", "decisions": "skip", "split": None, "reward": "negative"},
}

for _id, _arguments in VARIANTS.items():
    if _id not in registry:
        _live = "table" not in _arguments
        register(
            _id,
            entry_point=f"skipdiff_env.{'env:SkipDiffEnv' if _live else 'table_env:SkipDiffTableEnv'}",
            vector_entry_point=(
                f"skipdiff_env.{'vector_env:SkipDiffVectorEnv' if _live else 'table_env:SkipDiffTableVectorEnv'}"
            ),
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
