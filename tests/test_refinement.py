"""The decision process against the reverse steps that it is made of."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ddpm.errors import ConfigError
from ddpm.noise import MAX_NOISE, KeyedNoise, Stage, keyed_noise
from ddpm.sampling import COARSE_SAMPLERS, coarse_approximation, coarse_sampler, p_sample, refine, to_image
from ddpm.schedule import cosine_alphas_cumprod
from ddpm.unet import UNet
from skipdiff_env.memo import Memo
from skipdiff_env.refinement import Action, RefinementProcess, fixed_start
from tests.conftest import counting, tiny_unet

T = 12
PAIRS = [(6, 2), (4, 3), (3, 4), (2, 6), (1, 12)]
DENOISE, SKIP = Action.DENOISE, Action.SKIP
UNET = tiny_unet(diffusion_steps=T, coarse_steps=3, start=None)
SCHEDULE = cosine_alphas_cumprod(T)


def condition(seed: int = 0, size: int = 16) -> Tensor:
    return torch.from_numpy(keyed_noise(seed, Stage.INITIAL, 0, (3, size, size))).mul(0.4).clamp(-1, 1)


def denoise(t: int, latent: Tensor, lr_up: Tensor, seed: int) -> Tensor:
    """D_t by itself, for one picture."""
    noise = KeyedNoise([seed], latent.shape)(Stage.FINE, t)
    return p_sample(UNET, SCHEDULE, t, latent[None], lr_up[None], noise)[0]


def by_hand(steps: tuple[int, int], skip_mode: str, actions: Sequence[int], lr_up: Tensor, seed: int) -> Tensor:
    """Eq. 13-15 for one picture, written out."""
    S, N = steps
    noise = KeyedNoise([seed], lr_up.shape)
    coarse = coarse_approximation(UNET, cosine_alphas_cumprod(S), lr_up[None], noise)[0]
    u = coarse
    for t, action in zip(range(N, 1, -1), actions, strict=True):
        if action == DENOISE:
            u = denoise(t, u, lr_up, seed)
        elif skip_mode == "restart":
            u = coarse
    return to_image(UNET, denoise(1, u, lr_up, seed)[None], lr_up[None])[0]


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
    assert state.history == surviving
    assert state.t == 0


@settings(max_examples=25, deadline=None)
@given(data=st.data(), steps=st.sampled_from(PAIRS), skip_mode=st.sampled_from(["restart", "hold"]))
def test_any_decisions_in_any_batch(data: st.DataObject, steps: tuple[int, int], skip_mode: str) -> None:
    S, N = steps
    size = data.draw(st.integers(1, 5), label="pictures")
    actions = data.draw(
        st.lists(st.lists(st.integers(0, 1), min_size=N - 1, max_size=N - 1), min_size=size, max_size=size)
    )
    batch_size = data.draw(st.integers(1, 5), label="batch_size")
    process = RefinementProcess(UNET, T, steps, skip_mode, batch_size=batch_size)
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
        expected = by_hand(steps, skip_mode, actions[i], condition(i), seeds[i])
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


@pytest.mark.parametrize("skip_mode", ["restart", "hold"])
def test_fixed_start(skip_mode: str) -> None:
    process = RefinementProcess(UNET, T, (2, 6), skip_mode)
    (state,) = process.begin([condition()], [5])
    for start, (finished, sr) in enumerate(process.run_all_starts([state])[0], start=1):
        (alone,) = process.begin([condition()], [5])
        torch.testing.assert_close(process.run([alone], fixed_start(start))[0], sr, atol=1e-5, rtol=0)
        assert finished.start == alone.start == start
        assert finished.nfe == alone.nfe == 1 + start
    assert state.t == 6, "the given states are left as they are"


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


def test_hold_and_restart_do_not_share_a_history() -> None:
    memo = Memo(8)
    actions = (DENOISE, SKIP, DENOISE)
    kept = play(RefinementProcess(UNET, T, (3, 4), "hold", memo), actions, keys=["a"])
    thrown = play(RefinementProcess(UNET, T, (3, 4), "restart", memo), actions, keys=["a"])
    assert kept[0].history == (4, 2, 1)
    assert thrown[0].history == (2, 1)
    assert not torch.allclose(kept[1], thrown[1])


def test_estimate() -> None:
    process = RefinementProcess(UNET, Plan(3, 4))
    (state,) = process.begin([condition()], [5])
    before = process.estimate(state)
    assert before.shape == (3, 16, 16)
    assert before.abs().max() <= 1
    sr = process.run([state], fixed_start(2))[0]
    torch.testing.assert_close(process.estimate(state), sr)
    assert state.nfe == 4, "looking costs nothing"


class Adversary:
    """A net whose estimate of x_0 is as far out as the clamp lets it be."""

    prediction, residual_scale, coarse = "v", 4.0, "ddpm"

    def __init__(self, target: str) -> None:
        self.target = target

    def __call__(self, lr_up: Tensor, x_t: Tensor, noise_level: Tensor) -> Tensor:
        return torch.full_like(x_t, -1e9)


@pytest.mark.parametrize("steps", [(10, 10), (5, 20), (1, 100), (50, 2)])
@pytest.mark.parametrize("target", ["image", "residual"])
@pytest.mark.parametrize("skip_mode", ["restart", "hold"])
@pytest.mark.parametrize("coarse", ["ddpm", "ddim", "ddim:0.6"])
def test_latent_bound_is_reached_and_not_left(
    steps: tuple[int, int], target: str, skip_mode: str, coarse: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "ddpm.noise.keyed_noise", lambda seed, stage, t, shape: np.full(shape, MAX_NOISE, dtype=np.float32)
    )
    process = RefinementProcess(Adversary(target), 100, steps, skip_mode, coarse=coarse)
    bound = process.latent_bound()
    rng = np.random.default_rng(0)
    largest = 0.0
    for density in (0.0, 0.5, 1.0):
        (state,) = process.begin([torch.full((3, 2, 2), -1.0)], [0])
        largest = max(largest, float(state.latent.max()))
        for _ in range(process.N - 1):
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
    process = RefinementProcess(Adversaries(target, S), 100, (S, 100 // S), batch_size=count, coarse="dpmsolver++")
    # without fine steps the bound is that of the coarse latent
    process.fine_steps = 0
    bound = process.latent_bound()
    largest = max(
        float(s.coarse_latent.abs().max()) for s in process.begin([torch.full((3, 1, 1), -1.0)] * count, [0] * count)
    )
    assert reached * bound < largest <= bound * (1 + 1e-6)


@pytest.mark.parametrize("coarse", [*COARSE_SAMPLERS, "ddim:0.6"])
def test_coarse_sampler(coarse: str) -> None:
    """It gives the coarse latent after as many forwards; the fine steps are the same."""
    process = RefinementProcess(UNET, T, (4, 3), coarse=coarse, batch_size=2)
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
        RefinementProcess(UNET, T, (4, 3), coarse=name).begin([condition()], [5])[0].coarse_latent
        for name in COARSE_SAMPLERS
    ]
    for i in range(len(latents)):
        assert not torch.allclose(latents[i], latents[i - 1], atol=1e-3)


def test_noise_is_bounded() -> None:
    """Numpy's ziggurat: its last layer begins at r, and -log(1 - u)/r is added, u a multiple of 2⁻²⁴ below 1."""
    r = 3.6541528853610088
    assert r + 24 * np.log(2) / r < MAX_NOISE
    assert np.abs(keyed_noise(0, Stage.FINE, 1, (2_000_000,))).max() < MAX_NOISE


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steps": (5, 3)}, "multiply to the 12"),
        ({"steps": (3, 4), "skip_mode": "restrat"}, "restart, hold"),
        ({"steps": (3, 4), "coarse": "dpm"}, r"ddpm, ddim, dpmsolver\+\+, or ddim:ETA with ETA in 0 … 1, got 'dpm'"),
        ({"steps": (3, 4), "batch_size": 0}, "at least 1"),
        ({"steps": (3, 4), "fine_steps": 3}, "fine_steps must lie in 4 … 12, .* got 3"),
        ({"steps": (3, 4), "fine_steps": 13}, "fine_steps must lie in 4 … 12"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], message: str, unet: UNet) -> None:
    with pytest.raises(ConfigError, match=message):
        RefinementProcess(unet, T, **arguments)
