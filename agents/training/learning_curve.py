"""The learning curve of a run, with the results of each evaluation, in `evaluations.csv`."""

import csv
import math
from dataclasses import dataclass
from pathlib import Path

from ddpm.util.errors import ConfigError

# The file of a run's learning curve.
CURVE = "evaluations.csv"


@dataclass(frozen=True)
class CurvePoint:
    """The results of one evaluation, over all its pictures and noise seeds; one line of the learning curve.

    Attributes:
        env_steps: number of decisions in the training so far.
        episodes: number of episodes in the training so far, if all of them had the largest length.
        seconds: wall time of the training so far, without the evaluations.
        reward: mean over pictures and noises.
        regret: mean distance from the best start of each picture and noise; NaN if it is unknown.
        start: mean start of the surviving chain; NaN on a table.
        skips: share of decisions that were SKIP; NaN on a table.
        nfe: mean number of UNet forwards, coarse and fine.
        best_fixed_reward: reward of the best fixed start on the same pictures, on a table of the schedule that is best
            for the training photographs; NaN if it is unknown.
        oracle_reward: mean reward of the best starts, on a table of the schedules that are best under the other noises;
            NaN if it is unknown.
        score: score on validation photographs, see `skipdiff_env.scoring.score`; NaN if the environment has no scores.
    """

    env_steps: int
    episodes: int
    seconds: float
    reward: float
    regret: float
    start: float
    skips: float
    nfe: float
    best_fixed_reward: float
    oracle_reward: float
    score: float = math.nan


def read_curve(path: Path) -> list[CurvePoint]:
    """Return the learning curve of a run from its `evaluations.csv`.

    Raises:
        ConfigError: the file is missing or damaged.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return [
                CurvePoint(
                    **{k: int(v) if k in ("env_steps", "episodes") else float(v) for k, v in row.items()}  # type: ignore[arg-type]
                )
                for row in csv.DictReader(file)
            ]
    except FileNotFoundError:
        raise ConfigError(f"no such file: {path}; it is written at the first evaluation of a run") from None
    except (OSError, TypeError, ValueError) as error:
        raise ConfigError(f"{path} is not a learning curve ({error})") from None
