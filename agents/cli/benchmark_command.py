"""`skipdiff benchmark`."""

from typing import Any

import click

from agents.cli.options import TRUST_PICKLE


@click.command()
@click.argument("agents", nargs=-1, required=True, metavar="AGENT…")
@click.option(
    "--env",
    "env_id",
    default="SkipDiffBanditTable-v0",
    help="SkipDiffBanditTable-v0, SkipDiffStrideTable-v0 or SkipDiffContinuousTable-v0.",
)
@click.option(
    "--table", help="Folder that `tabulate --levels` wrote, or name of a shipped table.  [default: the environment's]"
)
@click.option("--split", default="test", help="train, validation or test.")
@click.option("--nfe-penalty", type=click.FloatRange(min=0), default=0.002, help="Price of a forward.")
@TRUST_PICKLE
def benchmark(
    agents: tuple[str, ...], env_id: str, table: str | None, split: str, nfe_penalty: float, trust_pickle: bool
) -> None:
    """Print the score of agents: 0 is the best fixed schedule, 1 the best one under each crop's other noises.

    AGENT is the folder of an agent or of a run, a .zip of Stable-Baselines3 (with --trust-pickle), or MODULE:FUNCTION,
    a function that returns one action for each row of an array of observations. Several agents count as training seeds
    of one algorithm, and the command also prints the interval of their mean.
    """
    from agents.benchmark import load_policy
    from agents.tables import markdown
    from skipdiff_env.scoring import score, tree_of

    tree = tree_of(env_id, table)
    tree.table.split(split).check_score(tree.table.split("train").best_fixed(nfe_penalty), nfe_penalty)
    policies = [load_policy(agent, tree, trust_pickle) for agent in agents]
    settings: dict[str, Any] = {"split": split, "env_id": env_id, "table": tree.table, "nfe_penalty": nfe_penalty}
    scores = [score(policy, **settings) for policy in policies]
    lines = [
        (name, f"{own.value:.3f} [{own.low:.3f}, {own.high:.3f}]", f"{own.reward:.4f}")
        for name, own in zip(agents, scores, strict=True)
    ]
    click.echo(markdown(("agent", "score", "reward"), lines))
    if len(agents) > 1:
        mean = score(policies, **settings)
        click.echo(
            f"\nmean {mean.value:.3f} [{mean.low:.3f}, {mean.high:.3f}], interquartile mean {mean.iqm:.3f} "
            f"of {len(agents)} agents"
        )
    photographs = len(set(tree.table.split(split).photographs))
    click.echo(
        f"\n{env_id}, {photographs} {split} photographs, 95 % bootstrap intervals over photographs. "
        f"0: reward {scores[0].fixed:.4f}, the best fixed schedule; 1: {scores[0].others:.4f}, the best one under the "
        "other noises."
    )
