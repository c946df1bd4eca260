"""Comparison of methods that enlarge pictures, on the same pictures and noise, for `evaluate` and `reproduce`.

`agents.study.methods` defines the methods, `Runner.run` runs them, and the paper's tables (`agents.study.paper`) are
made of the same rows as those of `evaluate`.
"""

from agents.study.evaluation import default_reward, evaluate
from agents.study.figures import plot_evaluation
from agents.study.rows import to_markdown, write_report
from agents.study.running import default_metrics, load_crops, save_pictures

__all__ = [
    "default_metrics",
    "default_reward",
    "evaluate",
    "load_crops",
    "plot_evaluation",
    "save_pictures",
    "to_markdown",
    "write_report",
]
