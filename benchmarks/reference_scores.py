"""The reference scores of the benchmark, and the plot of the learning curves.

python -m benchmarks.reference_scores --out runs/reference [--seeds 5] [--ship]

Finished trainings are not repeated by a command with the same settings. With --ship the scores are written to
`skipdiff_env/tables/reference_scores.csv`, and the table and the plot of docs/benchmark.md to docs/generated.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from agents.algorithms import algorithm_class
from agents.cli.command import Command
from agents.study.figures import save
from agents.study.intervals import interval
from agents.tables import markdown, write_csv
from agents.training.baselines import fit, random_policy
from agents.training.config import AgentTrainingConfig
from agents.training.learning_curve import CURVE, CurvePoint, read_curve
from agents.training.sb3 import MODEL, train_agent
from ddpm.util.files import atomic_path
from skipdiff_env.outcomes import OutcomeTable, Score
from skipdiff_env.rules import PRICE
from skipdiff_env.scoring import play, tree_of
from skipdiff_env.tree import Tree

BANDIT, STRIDE, NUMBERS = "SkipDiffBanditTable-v0", "SkipDiffStrideTable-v0", "SkipDiffContinuousTable-v0"
STRIDE_TABLE = "natural-x4-stride"
ALGORITHMS = ("ppo", "dqn", "qrdqn", "trpo", "maskable-ppo", "a2c")
FITTED = ("ridge", "supervised", "cloning")
# Heading → environment, table, methods.
SECTIONS: dict[str, tuple[str, str | None, tuple[str, ...]]] = {
    BANDIT: (BANDIT, None, ("random", "best fixed", *FITTED, *ALGORITHMS)),
    f"{BANDIT}, table={STRIDE_TABLE}": (BANDIT, STRIDE_TABLE, ("random", "best fixed", "ridge", "supervised", "ppo")),
    STRIDE: (STRIDE, None, ("random", "best fixed", "ridge", "supervised", "ppo")),
    f"{BANDIT}, table=photo-x4": (BANDIT, "photo-x4", ("random", "best fixed", "ridge", "supervised", "ppo")),
    NUMBERS: (NUMBERS, None, ("random", "best fixed", "ppo", "sac", "td3")),
}
ONCE = {"best fixed", "ridge"}
# Comparisons: a text, and the number of the section and the method of either side.
COMPARISONS = (
    ("one decision: PPO less supervised", ("0", "ppo"), ("0", "supervised")),
    ("one decision: PPO less ridge", ("0", "ppo"), ("0", "ridge")),
    ("one schedule for all: the best of 18 less the best of 6", ("1", "best fixed"), ("0", "best fixed")),
    ("one decision, supervised: among 18 schedules less among 6", ("1", "supervised"), ("0", "supervised")),
    ("two decisions less one among the same 18: ridge", ("2", "ridge"), ("1", "ridge")),
    ("two decisions less one among the same 18: supervised", ("2", "supervised"), ("1", "supervised")),
    ("two decisions less one among the same 18: PPO", ("2", "ppo"), ("1", "ppo")),
)


def chosen(tree: Tree, method: str, seed: int, folder: Path, env_id: str, table: str | None) -> NDArray[np.intp]:
    """Return the schedules that a method chooses on test photographs, (crops, noises); they are computed once."""
    kept = folder / "choices.npy"
    if not kept.exists():
        train, validation, test = (Tree(tree.table.split(name), tree.kind) for name in ("train", "validation", "test"))
        fixed = train.table.best_fixed(PRICE)
        if method == "best fixed":
            choices = np.full(test.table.metrics[test.table.metric].shape[:2], fixed)
        elif method == "random":
            choices = play(test, random_policy(test.action_space, seed))
        elif method in FITTED:
            choices = play(test, fit(train, validation, PRICE, method, seed))  # type: ignore[arg-type]
        else:
            config = AgentTrainingConfig(method, env_id, {} if table is None else {"table": table}, seed=seed)
            train_agent(config, folder / "run", resume=(folder / "run").exists())
            choices = play(test, algorithm_class(method).load(folder / "run" / MODEL, device="cpu"))
        with atomic_path(kept) as temporary, temporary.open("wb") as file:
            np.save(file, choices)
    return np.load(kept)


def paired(
    table: OutcomeTable, ours: Sequence[NDArray[np.intp]], theirs: Sequence[NDArray[np.intp]]
) -> tuple[float, float, float]:
    """Return the difference of two methods' mean rewards over their seeds, and its interval over photographs."""
    own, other = (
        np.mean([table.per_photograph(table.chosen(choices, PRICE)) for choices in each], axis=0)
        for each in (ours, theirs)
    )
    return float((own - other).mean()), *interval(own - other)


def learning_curves(curves: dict[str, list[list[CurvePoint]]]) -> Figure:
    """Plot the validation score against decisions: the mean over the seeds and its 95 % interval."""
    figure = Figure(figsize=(7.5, 4.6))
    axis = figure.subplots()
    for place, (name, runs) in enumerate(curves.items()):
        points = [np.array([(point.env_steps, point.score) for point in run]).T for run in runs]
        steps = np.linspace(max(run[0, 0] for run in points), min(run[0, -1] for run in points), 40)
        values = np.array([np.interp(steps, *run) for run in points])
        bands = np.array([interval(column) for column in values.T]).T
        axis.plot(steps, values.mean(axis=0), color=f"C{place}", label=name)
        axis.fill_between(steps, *bands, color=f"C{place}", alpha=0.15, lw=0)
    for height, label in ((0, "best fixed schedule"), (1, "best under the other noises")):
        axis.axhline(height, color="grey", ls=":")
        axis.annotate(label, (1, height), xycoords=("axes fraction", "data"), xytext=(-4, 3),
                      textcoords="offset points", ha="right", fontsize=8)  # fmt: skip
    axis.set(xlabel="decisions", ylabel="score on validation photographs", ylim=(-0.6, 1.15))
    axis.legend(fontsize=8, loc="lower right")
    return figure


def _cell(score: Score) -> str:
    return f"{score.value:.3f} [{score.low:.3f}, {score.high:.3f}]"


@click.command(cls=Command, context_settings={"show_default": True})
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder of the trainings.")
@click.option("--seeds", type=click.IntRange(min=1), default=5, help="Trainings of each method, with seeds 0, 1, …")
@click.option("--sections", default="0,1,2,3,4", help="Which of the tables, by number, in the order of the report.")
@click.option("--ship", is_flag=True, help="Write into the package and the documentation.")
def main(out: Path, seeds: int, sections: str, ship: bool) -> None:
    """Train and score every method of the benchmark, and print the table."""
    rows: list[dict[str, Any]] = []
    text, found = [], {}
    curves: dict[str, list[list[CurvePoint]]] = {}
    for number in sections.split(","):
        heading, (env_id, table, methods) = list(SECTIONS.items())[int(number)]
        tree = tree_of(env_id, table)
        fixed = tree.table.split("train").best_fixed(PRICE)
        test = tree.table.split("test")
        lines = []
        for method in methods:
            count = 1 if method in ONCE else seeds
            folders = [out / f"section-{number}" / method / f"seed-{seed}" for seed in range(count)]
            each = [chosen(tree, method, seed, folder, env_id, table) for seed, folder in enumerate(folders)]
            found[number, method] = each
            score = test.score(each, fixed, PRICE)
            lines.append((method, len(each), _cell(score), f"{score.iqm:.3f}", f"{score.reward:.4f}"))
            rows.append(
                {
                    "env": env_id, "table": table or "", "method": method, "seeds": len(each),
                    "score": round(score.value, 4), "low": round(score.low, 4), "high": round(score.high, 4),
                    "iqm": round(score.iqm, 4), "reward": round(score.reward, 5),
                    "values": " ".join(f"{value:.4f}" for value in score.values),
                }
            )  # fmt: skip
            if method in ALGORITHMS and number == "0":
                curves[method] = [read_curve(folder / "run" / CURVE) for folder in folders]
            click.echo(f"{heading}: {method} {_cell(score)}", err=True)
        way = tree.table.schedules[fixed]
        columns = ("method", "seeds", "score on test photographs", "interquartile mean", "reward")
        text.append(
            f"**{heading}** ({len(set(test.photographs))} test photographs; 0: reward {score.fixed:.4f}, the schedule "
            f"`{way}` for all; 1: reward {score.others:.4f})\n\n" + markdown(columns, lines)
        )
    comparisons = []
    for what, ours, theirs in COMPARISONS:
        if ours in found and theirs in found:
            test = tree_of(STRIDE if theirs[0] != "0" or ours[0] != "0" else BANDIT).table.split("test")
            gain, low, high = paired(test, found[ours], found[theirs])
            comparisons.append((what, f"{gain:+.4f} [{low:+.4f}, {high:+.4f}]"))
    if comparisons:
        text.append(
            "**Differences of rewards**, with paired 95 % bootstrap intervals over photographs; schedules of one "
            "forward are the same in both tables\n\n" + markdown(("what is compared", "difference"), comparisons)
        )
    report = "\n\n".join(text)
    click.echo(report)
    generated = Path("docs") / "generated" if ship else out
    with atomic_path(generated / "benchmark.md") as temporary:
        temporary.write_text(f"`python -m benchmarks.reference_scores` printed:\n\n{report}\n", encoding="utf-8")
    write_csv((Path("skipdiff_env") / "tables" if ship else out) / "reference_scores.csv", rows)
    if curves:
        save(learning_curves(curves), generated / "benchmark.webp")


if __name__ == "__main__":
    main()
