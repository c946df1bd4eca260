"""Comparison of ways to enlarge pictures, on the same pictures and noise: `evaluate`, `reproduce`, their tables.

A method is one object (`agents.study.methods`), a run of methods is one function (`Runner.run`), and a section of the
paper's report is one object that names the methods it needs (`agents.paper.section`).
"""

from agents.study.evaluation import default_reward, evaluate
from agents.study.figures import plot_evaluation
from agents.study.rows import to_markdown, write_tables
from agents.study.running import default_metrics, load_crops, save_pictures
from agents.study.study import MAIN, ReportConfig, Study

__all__ = [
    "MAIN",
    "ReportConfig",
    "Study",
    "default_metrics",
    "default_reward",
    "evaluate",
    "load_crops",
    "plot_evaluation",
    "save_pictures",
    "to_markdown",
    "write_tables",
]
