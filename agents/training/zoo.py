"""Hyperparameters for RL Baselines3 Zoo, converted from those of this project.

This is a module since the zoo takes one as `--conf-file`:

python -m rl_zoo3.train --algo ppo --env SkipDiff-v0 --gym-packages skipdiff_env --conf-file agents.training.zoo

The zoo makes scalar environments (`--env-kwargs metric:"'lpips'"` sets their arguments) and has another way to stack
frames, so both are written out here. A conf file does not depend on the algorithm: these are the hyperparameters of
PPO; for A2C and TRPO, write a conf file of two lines with `agents.training.zoo.settings`.
"""

from typing import Any

from agents.training.hyperparameters import ENV_ID, load_hyperparameters

# N - 1 of the environment's default steps (10, 10).
DECISIONS = 9


def settings(algorithm: str, decisions: int = DECISIONS) -> dict[str, Any]:
    """Return the shipped hyperparameters of an on-policy algorithm in the zoo's form.

    Args:
        algorithm: "ppo", "a2c" or "trpo".
        decisions: N - 1 of the environment.
    """
    h = load_hyperparameters(algorithm)
    values = h.algorithm_settings(algorithm, decisions)
    policy = h.policy_settings(algorithm)
    extractor = policy.pop("features_extractor_class")
    policy_kwargs = ", ".join(f"{name}={value!r}" for name, value in policy.items())
    wrappers: list[dict[str, Any]] = [
        {"stable_baselines3.common.vec_env.VecFrameStack": {"n_stack": decisions, "channels_order": "first"}}
    ]
    if h.picture_baseline:
        wrappers.append({"agents.training.vec_env.VecPictureBaseline": {}})
    if h.lr_schedule == "linear":
        values["learning_rate"] = f"lin_{h.algorithm['learning_rate']}"
    return {
        **values,
        "policy": "CnnPolicy",
        "n_envs": h.n_envs,
        "n_timesteps": h.env_steps,
        "policy_kwargs": (  # a string that the zoo evaluates, so that it can also log it
            f"dict(features_extractor_class=get_class_by_name('{extractor.__module__}.{extractor.__name__}'), "
            f"{policy_kwargs})"
        ),
        "vec_env_wrapper": wrappers,
    }


hyperparams = {ENV_ID: settings("ppo")}
