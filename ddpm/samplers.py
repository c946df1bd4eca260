"""Names of samplers. This module does not need torch."""

import math
from collections.abc import Mapping

from ddpm.util.errors import ConfigError

# Samplers of the coarse stage: name → eta of `coarse_approximation`; None: DPM-Solver++.
COARSE_SAMPLERS: Mapping[str, float | None] = {"ddpm": 1.0, "ddim": 0.0, "dpmsolver++": None}


def coarse_eta(name: str, what: str = "coarse_sampler") -> float | None:
    """Return the share of the posterior's noise that a sampler adds at each step; None for "dpmsolver++".

    Args:
        name: "ddpm" (1), "ddim" (0), "ddim:ETA" with 0 ≤ ETA ≤ 1 for those between them, or "dpmsolver++".
        what: name of the setting, for the error.

    Raises:
        ConfigError: the name is unknown.
    """
    if isinstance(name, str) and name in COARSE_SAMPLERS:
        return COARSE_SAMPLERS[name]
    family, _, number = str(name).partition(":")
    try:
        eta = float(number) if family == "ddim" else math.nan
    except ValueError:
        eta = math.nan
    if not 0 <= eta <= 1:
        raise ConfigError(
            f"{what} must be one of {', '.join(COARSE_SAMPLERS)}, or ddim:ETA with ETA in 0 … 1, got {name!r}"
        )
    return eta
