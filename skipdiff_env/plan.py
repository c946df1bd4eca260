"""The plan of an episode: its steps, their samplers, and the meaning of a skip."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from ddpm.samplers import coarse_eta
from ddpm.schedule import LONGEST, Schedule
from ddpm.util.checks import check_most, check_one_of, check_whole, is_whole
from ddpm.util.errors import ConfigError

SKIP_MODES = ("restart", "jump")
# The parts of a plan that environments and commands take, see `Plan.resolve`.
PARTS = ("steps", "coarse_sampler", "fine_sampler", "skip_mode", "first_step")


@dataclass(frozen=True)
class Plan:
    """The steps of an episode. Episodes with equal plans are the same.

    Attributes:
        S: number of coarse steps; the coarse stage does the first S - 1 of them. With S = 1 there is no coarse stage.
        N: number of diffusion steps in a coarse step.
        coarse_sampler: sampler of the coarse stage: "ddpm" (Eq. 8-12), "ddim", "ddim:ETA" or "dpmsolver++".
        fine_sampler: sampler of the fine stage: "ddpm" (Eq. 13-15), "ddim" or "ddim:ETA", see
            `ddpm.samplers.coarse_eta`; with "jump" also "dpmsolver++", which uses the estimate of the previous step.
        skip_mode: meaning of SKIP: "restart", back to the coarse latent (Eq. 14), or "jump", nothing, so that the next
            performed step covers the skipped ones.
        first_step: the diffusion step of the first decision, N … S·N; None: N. With "restart" the coarse latent keeps
            the noise level of step N (the paper's Table 4, case 4); "jump" allows only N.

    Raises:
        ConfigError: a value is out of range or unknown.
    """

    S: int = 10
    N: int = 10
    coarse_sampler: str = "ddpm"
    fine_sampler: str = "ddpm"
    skip_mode: str = "restart"
    first_step: int | None = None

    def __post_init__(self) -> None:
        check_whole(**{f"{name} of steps S,N": getattr(self, name) for name in ("S", "N")})
        check_most(LONGEST, **{"steps S,N, multiplied,": self.length})
        check_one_of(SKIP_MODES, skip_mode=self.skip_mode)
        coarse_eta(self.coarse_sampler)
        if coarse_eta(self.fine_sampler, "fine_sampler") is None and self.skip_mode != "jump":
            raise ConfigError(
                f"fine_sampler must be ddpm, ddim, or ddim:ETA unless skip_mode is jump, got {self.fine_sampler!r}"
            )
        first = self.N if self.first_step is None else self.first_step
        if not is_whole(first) or not self.N <= first <= self.length:
            raise ConfigError(
                f"first_step must be a whole number in {self.N} … {self.length}, from N of steps S,N to all S·N "
                f"diffusion "
                f"steps, got {first!r}"
            )
        if self.skip_mode == "jump" and first != self.N:
            raise ConfigError(f"with skip_mode jump the first decision is at step N = {self.N}, got first_step {first}")
        object.__setattr__(self, "first_step", first)

    @property
    def first(self) -> int:
        """The diffusion step of the first decision."""
        assert self.first_step is not None
        return self.first_step

    @property
    def length(self) -> int:
        """Number of diffusion steps in the whole schedule, S·N."""
        return self.S * self.N

    @property
    def decisions(self) -> int:
        """Number of decisions in an episode: one at each step from the first down to 2."""
        return self.first - 1

    @property
    def coarse_forwards(self) -> int:
        """Number of UNet forwards in the coarse stage."""
        return self.S - 1

    @property
    def coarse(self) -> tuple[int, int, str]:
        """The settings of the coarse latent, which also depends on picture and noise."""
        return self.S, self.N, self.coarse_sampler

    def check(self, diffusion_steps: int) -> None:
        """Check the plan against the diffusion steps T of a net.

        Under "jump" any length is possible, since the net knows every noise level; "restart" is defined on the schedule
        of the net.

        Raises:
            ConfigError: S·N differs from T under "restart".
        """
        if self.skip_mode == "restart" and self.length != diffusion_steps:
            pairs = ", ".join(
                f"{n},{diffusion_steps // n}" for n in range(2, diffusion_steps) if diffusion_steps % n == 0
            )
            raise ConfigError(
                f"steps S,N must multiply to the {diffusion_steps} diffusion steps of the checkpoint, got "
                f"{self.S},{self.N}; "
                f"try one of {pairs}"
            )

    @classmethod
    def resolve(cls, settings: Mapping[str, Any], agent: "Plan | None" = None, **given: Any) -> "Plan":
        """Return the plan of an episode: each part is the given one, else the agent's, else the checkpoint's.

        If the given steps differ from the agent's, its first step does not apply, and N takes its place. The
        checkpoint's coarse sampler belongs to its coarse stage, and is only used under "restart".

        Args:
            settings: settings of the checkpoint's net, `ddpm.nets.unet.UNet.settings`.
            agent: the plan of the agent; None: there is no agent, or its plan is unknown.
            given: given parts by the names of the attributes, and `steps` for (S, N); None means not given.

        Raises:
            ConfigError: a part is unknown, out of range, or does not fit the checkpoint.
        """
        known = {f.name for f in fields(cls)} | {"steps"}
        unknown = sorted(given.keys() - known)
        if unknown:
            raise ConfigError(f"unknown part of a plan: {', '.join(unknown)}; known are {', '.join(sorted(known))}")
        asked = {name: value for name, value in given.items() if value is not None}
        if "steps" in asked:
            steps = asked.pop("steps")
            if not isinstance(steps, tuple | list) or len(steps) != 2 or not all(map(is_whole, steps)):
                raise ConfigError(f"steps must be two whole numbers (S, N), got {steps!r}")
            asked["S"], asked["N"] = map(int, steps)
        T, base = settings["diffusion_steps"], agent
        if base is None:
            S = settings["coarse_steps"]
            own = settings["coarse_sampler"] if asked.get("skip_mode", "restart") == "restart" else "ddpm"
            base = cls(S, T // S, own)
        if (asked.get("S", base.S), asked.get("N", base.N)) != (base.S, base.N):
            asked.setdefault("first_step", None)
        plan = replace(base, **asked)
        plan.check(T)
        return plan

    @classmethod
    def of_schedule(cls, schedule: Schedule, sampler: str) -> "Plan":
        """Return the plan of jumps for a schedule.

        Raises:
            ConfigError: the sampler is unknown, or the schedule has substeps and the sampler is not ddim.
        """
        if not schedule.plain and coarse_eta(sampler, "fine_sampler") != 0:
            raise ConfigError(f"substeps need the sampler ddim, which adds no noise, got {sampler} for {schedule}")
        return cls(1, schedule.length, fine_sampler=sampler, skip_mode="jump")

    def settings(self) -> dict[str, Any]:
        """Return the plan as plain data."""
        return asdict(self)

    def describe(self) -> str:
        """Return a description of the plan in one line."""
        text = f"S,N = {self.S},{self.N}"
        if self.coarse_forwards:
            text += f", coarse sampler {self.coarse_sampler}"
        text += f", fine sampler {self.fine_sampler}, skip mode {self.skip_mode}"
        return text + (f", decisions from step {self.first} on" if self.first != self.N else "")
