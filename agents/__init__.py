"""Agents that decide which denoising steps to skip: training, saving, playing, and comparison.

The names below are imported when they are first used, so importing this package is cheap.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from agents.agent import load_agent
    from agents.exporting import export_agent
    from agents.playing import AgentPolicy
    from agents.training.sb3 import train_agent

__all__ = ["AgentPolicy", "export_agent", "load_agent", "train_agent"]

_MODULES = {
    "AgentPolicy": "playing",
    "export_agent": "exporting",
    "load_agent": "agent",
    "train_agent": "training.sb3",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
