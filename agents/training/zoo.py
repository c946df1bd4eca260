"""RL Baselines3 Zoo trains on the environments with these hyperparameters of PPO.

python -m rl_zoo3.train --algo ppo --env SkipDiff-v0 --gym-packages skipdiff_env --conf-file agents.training.zoo

The zoo takes the files in `agents/training/hyperparams` themselves, but reads classes in `policy_kwargs` only from a
string that it evaluates. A conf file does not depend on the algorithm; for others, write one of two lines with
`settings`. The zoo makes scalar environments; `--env-kwargs metric:"'lpips'"` sets their arguments.
"""

from typing import Any

from agents.training.hyperparameters import load_hyperparameters


def settings(algorithm: str, env_id: str = "SkipDiff-v0") -> dict[str, Any]:
    """Return the shipped hyperparameters of an algorithm for an environment, in the zoo's form."""
    values = load_hyperparameters(algorithm, env_id)
    policy = dict(values["policy_kwargs"])
    extractor = policy.pop("features_extractor_class", None)
    parts = [f"{name}={value!r}" for name, value in policy.items()]
    if extractor is not None:
        parts.append(f"features_extractor_class=get_class_by_name({extractor!r})")
    return {**values, "policy_kwargs": f"dict({', '.join(parts)})"}


hyperparams = {env_id: settings("ppo", env_id) for env_id in ("SkipDiff-v0", "SkipDiffFaces-v0", "SkipDiffJump-v0")}
