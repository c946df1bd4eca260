"""The Gymnasium environment SkipDiff-v0, its batched twin, and the upscaler that uses what an agent learns in it.

Importing this package registers the environment and is cheap: torch is imported when a name below is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from gymnasium.envs.registration import register, registry

if TYPE_CHECKING:
    from skipdiff_env.env import SkipDiffEnv
    from skipdiff_env.metrics import make_metric
    from skipdiff_env.refinement import Action
    from skipdiff_env.task import StartOutcomes
    from skipdiff_env.upscaler import Upscaler
    from skipdiff_env.vector_env import SkipDiffVectorEnv

__all__ = ["Action", "SkipDiffEnv", "SkipDiffVectorEnv", "StartOutcomes", "Upscaler", "make_metric"]

_MODULES = {
    "Action": "refinement",
    "SkipDiffEnv": "env",
    "SkipDiffVectorEnv": "vector_env",
    "StartOutcomes": "task",
    "Upscaler": "upscaler",
    "make_metric": "metrics",
}

if "SkipDiff-v0" not in registry:
    register(
        "SkipDiff-v0",
        entry_point="skipdiff_env.env:SkipDiffEnv",
        vector_entry_point="skipdiff_env.vector_env:SkipDiffVectorEnv",
    )


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
