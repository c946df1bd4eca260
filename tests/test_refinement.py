"""The decision process against the reverse steps that it is made of."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ddpm import sampling
from ddpm.nets.denoiser import NoiseLevelDenoiser, to_image
from ddpm.noise import MAX_NOISE, KeyedNoise, Stage, keyed_noise
from ddpm.peers import peer_sample
from ddpm.samplers import COARSE_SAMPLERS
from ddpm.sampling import (
    coarse_approximation,
    coarse_eta,
    coarse_sampler,
    p_sample,
    refine,
    run_levels,
    sample,
)
from ddpm.schedule import Schedule, cosine_alphas_cumprod, even_levels
from ddpm.util.errors import ConfigError
from skipdiff_env.memo import Memo
from skipdiff_env.plan import Plan
from skipdiff_env.refinement import Fixed, RefinementProcess, fixed_start, wanted_by
from skipdiff_env.rules import DENOISE, SKIP
from tests.conftest import counting, tiny_unet

T = 12
PAIRS = [(6, 2), (4, 3), (3, 4), (2, 6), (1, 12)]
UNET = tiny_unet(diffusion_steps=T, coarse_steps=3, start=None)
SCHEDULE = cosine_alphas_cumprod(T)
# S·N need not be T under "jump"
PLANS = [
    *(Plan(S, N) for S, N in PAIRS),
    *(
        Plan(S, N, fine_sampler=sampler, skip_mode="jump")
        for S, N in ((1, 6), (1, 12), (1, 9), (3, 4))
        for sampler in ("ddpm", "ddim", "ddim:0.5", "dpmsolver++")
    ),
]


def condition(seed: int = 0, size: int = 16) -> Tensor:
    return torch.from_numpy(keyed_noise(seed, Stage.INITIAL, 0, (3, size, size))).mul(0.4).clamp(-1, 1)


def denoise(t: int, latent: Tensor, lr_up: Tensor, seed: int) -> Tensor:
    """D_t by itself, for one picture."""
    noise = KeyedNoise([seed], latent.shape)(Stage.FINE, t)
    return p_sample(UNET, SCHEDULE, t, latent[None], lr_up[None], noise)[0]


def begin_by_hand(plan: Plan, lr_up: Tensor, seed: int) -> Tensor:
    """The coarse latent of one picture."""
    noise = KeyedNoise([seed], lr_up.shape)
    if plan.S == 1:
        return noise(Stage.INITIAL, plan.N)[0]
    return coarse_approximation(UNET, cosine_alphas_cumprod(plan.S), lr_up[None], noise)[0]


def restart_by_hand(plan: Plan, actions: Sequence[int], lr_up: Tensor, seed: int) -> Tensor:
    """Eq. 13-15 for one picture, written out."""
    coarse = u = begin_by_hand(plan, lr_up, seed)
    for t, action in zip(range(plan.N, 1, -1), actions, strict=True):
        u = denoise(t, u, lr_up, seed) if action == DENOISE else coarse
    return to_image(UNET, denoise(1, u, lr_up, seed)[None], lr_up[None])[0]


def jump_by_hand(plan: Plan, actions: Sequence[int], lr_up: Tensor, seed: int) -> Tensor:
    """Section "jump" for one picture, written out with the formula of the DDIM family, or of DPM-Solver++(2M)."""
    schedule = cosine_alphas_cumprod(plan.length)
    eta = {"ddpm": 1.0, "ddim": 0.0, "dpmsolver++": 0.0}.get(plan.fine_sampler, 0.5)
    u, level = begin_by_hand(plan, lr_up, seed), plan.N
    before = None
    for t, action in zip(range(plan.N, 0, -1), [*actions, DENOISE], strict=True):
        if action == SKIP:
            continue
        a, b = schedule[level], schedule[t - 1]
        x0 = estimate = sampling.estimate(UNET, schedule, level, u[None], lr_up[None])[0][0]
        if plan.fine_sampler == "dpmsolver++":
            if before is not None and t > 1:
                earlier, now, to = (0.5 * np.log(schedule[i] / (1 - schedule[i])) for i in (before[0], level, t - 1))
                x0 = x0 + min((to - now) / (now - earlier) / 2, 1) * (x0 - before[1])
            before = level, estimate
        variance = eta**2 * (1 - b) / (1 - a) * (1 - a / b)
        u = np.sqrt(b) * x0 + np.sqrt(1 - b - variance) * (u - np.sqrt(a) * x0) / np.sqrt(1 - a)
        if t > 1:
            u = u + np.sqrt(variance) * torch.from_numpy(keyed_noise(seed, Stage.FINE, t, u.shape))
        level = t - 1
    return to_image(UNET, u[None].float(), lr_up[None])[0]


def play(process: RefinementProcess, actions: Sequence[int], **begin: Any) -> tuple[Any, Tensor]:
    (state,) = process.begin([condition()], [5], **begin)
    for action in actions:
        process.step([state], [action])
    return state, process.finish([state])[0]


@pytest.mark.parametrize(
    ("actions", "surviving", "start"),
    [((SKIP, DENOISE, DENOISE), (3, 2, 1), 3), ((DENOISE, SKIP, DENOISE), (2, 1), 2)],
)
def test_worked_traces(actions: tuple[int, ...], surviving: tuple[int, ...], start: int) -> None:
    process = RefinementProcess(UNET, Plan(3, 4))
    state, sr = play(process, actions)
    u = state.coarse_latent
    for t in surviving:
        u = denoise(t, u, condition(), 5)
    torch.testing.assert_close(sr, to_image(UNET, u[None], condition()[None])[0])
    assert state.nfe - 2 == 3
    assert state.start == start
    assert state.levels == surviving
    assert state.t == 0


@settings(max_examples=25, deadline=None)
@given(data=st.data(), plan=st.sampled_from(PLANS))
def test_any_decisions_in_any_batch(data: st.DataObject, plan: Plan) -> None:
    S, N = plan.S, plan.N
    size = data.draw(st.integers(1, 5), label="pictures")
    actions = data.draw(
        st.lists(st.lists(st.integers(0, 1), min_size=N - 1, max_size=N - 1), min_size=size, max_size=size)
    )
    batch_size = data.draw(st.integers(1, 5), label="batch_size")
    process = RefinementProcess(UNET, plan, batch_size=batch_size)
    seeds = [7 + i % 2 for i in range(size)]
    with counting(UNET) as forwards:
        states = process.begin([condition(i) for i in range(size)], seeds)
        for column in zip(*actions, strict=True):
            process.step(states, column)
        results = process.finish(states)
    assert sum(forwards) == sum(state.nfe for state in states)
    assert max(forwards) <= batch_size
    for i, state in enumerate(states):
        assert state.nfe == S - 1 + actions[i].count(DENOISE) + 1
        by_hand = restart_by_hand if plan.skip_mode == "restart" else jump_by_hand
        expected = by_hand(plan, actions[i], condition(i), seeds[i])
        torch.testing.assert_close(results[i], expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("first", [4, 7, 12])
def test_decisions_may_begin_above_the_coarse_latents_level(first: int) -> None:
    """Case 4 of the paper's Table 4: the coarse stage is the same, the fine steps are more."""
    process = RefinementProcess(UNET, Plan(3, 4, first_step=first))
    (state,) = process.begin([condition()], [5])
    (plain,) = RefinementProcess(UNET, Plan(3, 4)).begin([condition()], [5])
    torch.testing.assert_close(state.coarse_latent, plain.coarse_latent)
    assert (state.t, state.nfe) == (first, 2)
    assert process.latent_bound() >= RefinementProcess(UNET, Plan(3, 4)).latent_bound()
    noise = KeyedNoise([5], state.coarse_latent.shape)
    table = process.run_all_starts([state])[0]
    assert len(table) == first
    for start, (finished, sr) in enumerate(table, start=1):
        chain = refine(UNET, SCHEDULE, state.coarse_latent[None], condition()[None], noise, start)
        torch.testing.assert_close(sr, to_image(UNET, chain, condition()[None])[0], atol=1e-5, rtol=0)
        assert (finished.start, finished.nfe) == (start, 2 + start)
    torch.testing.assert_close(process.run([state], fixed_start(first))[0], table[-1][1], atol=1e-5, rtol=0)


def test_all_denoise_is_plain_refinement() -> None:
    state, sr = play(RefinementProcess(UNET, Plan(3, 4)), [DENOISE] * 3)
    noise = KeyedNoise([5], state.coarse_latent.shape)
    plain = refine(UNET, SCHEDULE, state.coarse_latent[None], condition()[None], noise, start=4)
    torch.testing.assert_close(sr, to_image(UNET, plain, condition()[None])[0])


def test_fixed_start() -> None:
    process = RefinementProcess(UNET, Plan(2, 6))
    (state,) = process.begin([condition()], [5])
    for start, (finished, sr) in enumerate(process.run_all_starts([state])[0], start=1):
        (alone,) = process.begin([condition()], [5])
        torch.testing.assert_close(process.run([alone], fixed_start(start))[0], sr, atol=1e-5, rtol=0)
        assert finished.start == alone.start == start
        assert finished.nfe == alone.nfe == 1 + start
    assert state.t == 6, "the given states are left as they are"


def test_worked_trace_of_jumps() -> None:
    """4 → 2 → 0, two forwards."""
    state, sr = play(RefinementProcess(UNET, Plan(1, 4, skip_mode="jump")), (SKIP, DENOISE, SKIP))
    assert (state.levels, state.nfe, state.start, state.t) == ((4, 2), 2, 4, 0)
    noise = KeyedNoise([5], (3, 16, 16))
    schedule = cosine_alphas_cumprod(4)
    u = p_sample(UNET, schedule, 4, noise(Stage.INITIAL, 4), condition()[None], noise(Stage.FINE, 3), to=2)
    u = p_sample(UNET, schedule, 2, u, condition()[None], None, to=0)
    torch.testing.assert_close(sr, to_image(UNET, u, condition()[None])[0], atol=1e-5, rtol=0)


def test_jumps_without_a_skip_are_the_full_chain() -> None:
    state, sr = play(RefinementProcess(UNET, Plan(1, T, skip_mode="jump")), [DENOISE] * (T - 1))
    whole = sample(UNET, SCHEDULE, condition()[None], KeyedNoise([5], (3, 16, 16)))
    torch.testing.assert_close(sr, to_image(UNET, whole, condition()[None])[0], atol=1e-5, rtol=0)
    assert state.nfe == T


def test_nothing_but_skips_is_one_forward() -> None:
    with counting(UNET) as forwards:
        state, sr = play(RefinementProcess(UNET, Plan(1, T, skip_mode="jump")), [SKIP] * (T - 1))
    assert forwards == [1]
    assert state.levels == (T,)
    x0 = sampling.estimate(UNET, SCHEDULE, T, state.coarse_latent[None], condition()[None])[0]
    torch.testing.assert_close(sr, to_image(UNET, x0, condition()[None])[0], atol=1e-5, rtol=0)


@settings(max_examples=15, deadline=None)
@given(inner=st.sets(st.integers(1, 19), max_size=8), sampler=st.sampled_from(["ddpm", "ddim", "ddim:0.3"]))
def test_a_schedule(inner: set[int], sampler: str) -> None:
    """The same by decisions, by `run_all_schedules`, and by the plain sampler."""
    levels = (20, *sorted(inner, reverse=True))
    process = RefinementProcess(UNET, Plan(1, 20, fine_sampler=sampler, skip_mode="jump"))
    (state,) = process.begin([condition()], [5])
    with counting(UNET) as forwards:
        (((state, sr),),) = process.run_all_schedules([state], [Schedule(levels)])
    assert (state.levels, state.nfe, len(forwards)) == (levels, len(levels), len(levels))
    noise = KeyedNoise([5], (3, 16, 16))
    eta = coarse_eta(sampler)
    assert eta is not None
    latents = run_levels(UNET, process.alphas_cumprod, noise(Stage.INITIAL, 20), condition()[None], noise, levels, eta)
    torch.testing.assert_close(sr, to_image(UNET, latents, condition()[None])[0], atol=1e-5, rtol=0)
    _, played = play(process, [DENOISE if t - 1 in inner else SKIP for t in range(20, 1, -1)])
    torch.testing.assert_close(played, sr, atol=1e-5, rtol=0)


@pytest.mark.parametrize("sampler", ["ddim", "dpmsolver++"])
@pytest.mark.parametrize("forwards", [1, 4, 5, 10, 20])
def test_even_schedules_are_those_of_diffusers(forwards: int, sampler: str) -> None:
    process = RefinementProcess(UNET, Plan(1, 20, fine_sampler=sampler, skip_mode="jump"))
    (state,) = process.begin([condition()], [5])
    (((_, sr),),) = process.run_all_schedules([state], [Schedule(even_levels(20, forwards))])
    noise = KeyedNoise([5], (3, 16, 16))
    theirs, _ = peer_sample(sampler, UNET, process.alphas_cumprod, condition()[None], noise, forwards)
    torch.testing.assert_close(sr, to_image(UNET, theirs, condition()[None])[0], atol=1e-4, rtol=0)


@pytest.mark.parametrize("levels", [(), (19, 3), (20, 20), (20, 3, 5), (20, 0), (20, 2.5), (20, -1)])
def test_what_is_no_schedule(levels: Any) -> None:
    process = RefinementProcess(UNET, Plan(1, 20, skip_mode="jump"))
    with pytest.raises(ConfigError, match="levels must be falling whole numbers that begin with"):
        process.run_all_schedules(process.begin([condition()], [5]), [Schedule(levels)])


def test_schedules_and_starts_belong_to_their_modes() -> None:
    restart, jump = RefinementProcess(UNET, Plan(3, 4)), RefinementProcess(UNET, Plan(3, 4, skip_mode="jump"))
    with pytest.raises(ConfigError, match="need skip_mode jump, got restart"):
        restart.run_all_schedules(restart.begin([condition()], [5]), [Schedule((4, 2))])
    with pytest.raises(ConfigError, match="starts need skip_mode restart, got jump"):
        jump.run_all_starts([])


def test_with_restart_only_the_last_skip_matters() -> None:
    process = RefinementProcess(UNET, Plan(3, 4))
    (state,) = process.begin([condition()], [5])
    table = process.run_all_starts([state])[0]
    for code in range(8):
        actions = [code >> i & 1 for i in range(3)]
        played, sr = play(process, actions)
        start = 4 if SKIP not in actions else 3 - max(i for i, action in enumerate(actions) if action == SKIP)
        assert played.start == start
        torch.testing.assert_close(sr, table[start - 1][1], atol=1e-5, rtol=0)


def test_known_transitions_run_no_net() -> None:
    process = RefinementProcess(UNET, Plan(3, 4), memo=Memo(8))
    first = play(process, (DENOISE, SKIP, DENOISE), keys=["a"])
    with counting(UNET) as forwards:
        again = play(process, (DENOISE, SKIP, DENOISE), keys=["a"])
        assert forwards == []
        assert torch.equal(first[1], again[1])
        assert first[0].nfe == again[0].nfe == 5, "remembered forwards count like computed ones"
        play(process, (SKIP, SKIP, DENOISE), keys=["a"])
        assert forwards == [], "the same chain, reached by other decisions"
        play(process, (DENOISE, DENOISE, DENOISE), keys=["a"])
        assert forwards == [1, 1, 1], "D_4 is known, D_3, D_2 and D_1 after it are not"
        play(process, (DENOISE, SKIP, DENOISE), keys=["b"])
        assert sum(forwards[3:]) == 5


def test_no_key_no_memory() -> None:
    memo = Memo(8)
    play(RefinementProcess(UNET, Plan(3, 4), memo=memo), (DENOISE, SKIP, DENOISE))
    assert len(memo) == 0


def test_jumps_share_what_they_have_in_common() -> None:
    process = RefinementProcess(UNET, Plan(1, 4, skip_mode="jump"), memo=Memo(8))
    with counting(UNET) as forwards:
        play(process, (SKIP, DENOISE, DENOISE), keys=["a"])
        assert len(forwards) == 3
        play(process, (SKIP, DENOISE, SKIP), keys=["a"])
        assert len(forwards) == 4, "4 → 2 is known, 2 → 0 is not"
        play(process, (DENOISE, DENOISE, SKIP), keys=["a"])
        assert len(forwards) == 7, "4 → 3 → 2 is another way to the level 2"


def test_estimate() -> None:
    process = RefinementProcess(UNET, Plan(3, 4))
    (state,) = process.begin([condition()], [5])
    before = process.estimate(state)
    assert before.shape == (3, 16, 16)
    assert before.abs().max() <= 1
    sr = process.run([state], fixed_start(2))[0]
    torch.testing.assert_close(process.estimate(state), sr)
    assert state.nfe == 4, "looking costs nothing"


class Adversary(NoiseLevelDenoiser):
    """A net whose estimate of x_0 is as far out as the clamp lets it be."""

    prediction, residual_scale, scale, multiple = "v", 4.0, 1, 2

    def __init__(self, target: str) -> None:
        self.target = target

    def __call__(self, lr_up: Tensor, x_t: Tensor, noise_level: Tensor) -> Tensor:
        return torch.full_like(x_t, -1e9)


@pytest.mark.parametrize("steps", [(10, 10), (5, 20), (1, 100), (50, 2)])
@pytest.mark.parametrize("target", ["image", "residual"])
@pytest.mark.parametrize("skip_mode", ["restart", "jump"])
@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "ddim:0.6"])
def test_latent_bound_is_reached_and_not_left(
    steps: tuple[int, int], target: str, skip_mode: str, sampler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "ddpm.noise.keyed_noise", lambda seed, stage, t, shape: np.full(shape, MAX_NOISE, dtype=np.float32)
    )
    fine = sampler if skip_mode == "jump" else "ddpm"
    process = RefinementProcess(Adversary(target), Plan(*steps, sampler, fine, skip_mode))
    bound = process.latent_bound()
    rng = np.random.default_rng(0)
    largest = 0.0
    for density in (0.0, 0.5, 1.0):
        (state,) = process.begin([torch.full((3, 2, 2), -1.0)], [0])
        largest = max(largest, float(state.latent.max()))
        for _ in range(process.plan.decisions):
            process.step([state], [int(rng.random() < density)])
            largest = max(largest, float(state.latent.max()))
        process.finish([state])
        largest = max(largest, float(state.latent.max()))
    assert largest <= bound * (1 + 1e-6)
    assert largest > 0.99 * bound, "the bound is no larger than it must be"


class Adversaries(Adversary):
    """As many as there are signs of the S - 1 estimates, one for each member of the batch."""

    def __init__(self, target: str, S: int) -> None:
        super().__init__(target)
        self.signs = iter(torch.cartesian_prod(*[torch.tensor([-1e9, 1e9])] * (S - 1)).reshape(-1, S - 1).unbind(1))

    def __call__(self, lr_up: Tensor, x_t: Tensor, noise_level: Tensor) -> Tensor:
        return torch.ones_like(x_t) * next(self.signs)[:, None, None, None]


@pytest.mark.parametrize("S", [2, 5, 10])
@pytest.mark.parametrize(("target", "reached"), [("image", 0.99), ("residual", 0.9)])
def test_latent_bound_of_extrapolated_estimates(
    S: int, target: str, reached: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DPM-Solver++ weighs some estimates negatively; of the residual, those of a pixel cannot be far out both ways."""
    monkeypatch.setattr(
        "ddpm.noise.keyed_noise", lambda seed, stage, t, shape: np.full(shape, MAX_NOISE, dtype=np.float32)
    )
    count = 2 ** (S - 1)
    plan = Plan(S, 100 // S, coarse_sampler="dpmsolver++")
    process = RefinementProcess(Adversaries(target, S), plan, batch_size=count)
    bound = process._coarse_bound()
    largest = max(
        float(s.coarse_latent.abs().max()) for s in process.begin([torch.full((3, 1, 1), -1.0)] * count, [0] * count)
    )
    assert reached * bound < largest <= bound * (1 + 1e-6)


@pytest.mark.parametrize("coarse", [*COARSE_SAMPLERS, "ddim:0.6"])
def test_coarse_sampler(coarse: str) -> None:
    """It gives the coarse latent after as many forwards; the fine steps are the same."""
    process = RefinementProcess(UNET, Plan(4, 3, coarse), batch_size=2)
    with counting(UNET) as forwards:
        states = process.begin([condition(i) for i in range(3)], [5, 6, 7])
    assert forwards == [2, 2, 2, 1, 1, 1]
    for i, state in enumerate(states):
        noise = KeyedNoise([5 + i], state.coarse_latent.shape)
        expected = coarse_sampler(coarse)(UNET, cosine_alphas_cumprod(4), condition(i)[None], noise)[0]
        torch.testing.assert_close(state.coarse_latent, expected, atol=1e-5, rtol=0)
        assert state.nfe == 3
    sr = process.run(states, fixed_start(3))[1]
    fine = refine(UNET, SCHEDULE, states[1].coarse_latent[None], condition(1)[None], KeyedNoise([6], sr.shape), start=3)
    torch.testing.assert_close(sr, to_image(UNET, fine, condition(1)[None])[0], atol=1e-5, rtol=0)


def test_coarse_samplers_differ() -> None:
    latents = [
        RefinementProcess(UNET, Plan(4, 3, name)).begin([condition()], [5])[0].coarse_latent for name in COARSE_SAMPLERS
    ]
    for i in range(len(latents)):
        assert not torch.allclose(latents[i], latents[i - 1], atol=1e-3)


def test_noise_is_bounded() -> None:
    """Numpy's ziggurat: its last layer begins at r, and -log(1 - u)/r is added, u a multiple of 2⁻²⁴ below 1."""
    r = 3.6541528853610088
    assert r + 24 * np.log(2) / r < MAX_NOISE
    assert np.abs(keyed_noise(0, Stage.FINE, 1, (2_000_000,))).max() < MAX_NOISE


def test_wrong_batch_size() -> None:
    with pytest.raises(ConfigError, match="batch_size must be at least 1, got 0"):
        RefinementProcess(UNET, Plan(3, 4), batch_size=0)


def test_a_policy_needs_its_decisions() -> None:
    plan = Plan(1, 6, fine_sampler="ddim", skip_mode="jump")
    one, other = (Fixed(Schedule(levels), plan) for levels in ((6, 2), (6, 5, 1)))
    states = RefinementProcess(UNET, plan).begin([condition()], [5])
    for process in (RefinementProcess(UNET, plan), RefinementProcess(UNET, plan, **wanted_by(other))):
        with pytest.raises(ConfigError, match=r"make the process with wanted_by\(policy\)"):
            process.run(states, one)
    RefinementProcess(UNET, plan, **wanted_by(one)).run(states, one)
    assert states[0].levels == (6, 2)
