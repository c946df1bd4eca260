"""Hyperparameters for RL Baselines3 Zoo, made from the project's own; a module since the zoo takes one for `--conf-file`.

python -m rl_zoo3.train --algo ppo --env SkipDiff-v0 --gym-packages skipdiff_env --conf-file agents.zoo

The zoo makes scalar environments of its own (`--env-kwargs metric:"'lpips'"` sets their arguments) and has its own way to
stack frames, so both are written out here. A conf file does not know the algorithm: these are PPO's; A2C and TRPO take
their own from `agents.zoo.settings`, in a conf file of two lines.
"""

from typing import Any

from agents.hyperparameters import ENV_ID, load_hyperparameters

# N - 1 of the environment's default steps (10, 10).
DECISIONS = 9


def settings(algorithm: str, decisions: int = DECISIONS) -> dict[str, Any]:
    """The shipped hyperparameters of an on-policy algorithm as the zoo writes them.

    Args:
        algorithm: "ppo", "a2c" or "trpo".
        decisions: N - 1 of the environment.
    """
    h = load_hyperparameters(algorithm)
    values = h.algorithm_settings(algorithm, decisions)
    extractor = "get_class_by_name('agents.extractors.SkipProposalExtractor')"
    return {
        **{name: value for name, value in values.items() if name != "rollout_buffer_class"},
        "policy": "CnnPolicy",
        "n_envs": h.n_envs,
        "n_timesteps": h.env_steps,
        "policy_kwargs": (
            f"dict(features_extractor_class={extractor}, features_extractor_kwargs=dict(norm={h.norm!r}), "
            "net_arch=[], normalize_images=False)"
        ),
        "vec_env_wrapper": [
            {"stable_baselines3.common.vec_env.VecFrameStack": {"n_stack": decisions, "channels_order": "first"}}
        ],
    }


hyperparams = {ENV_ID: settings("ppo")}
