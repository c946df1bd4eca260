"""Sections: the figures of the paper, and other samplers on the same net."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from agents.paper.section import NO_PEERS, Page, Section, best_by_metric, better
from agents.plots import contact_sheet, perception_distortion, quality_against, save
from agents.study import methods as ways
from agents.study.methods import Method
from agents.study.rows import ORIGINALS, Row, by_method, domination_note, front, judged, summarise
from agents.study.running import picture_path
from agents.study.study import pair_name, penalty_of
from agents.study.tables import COLUMNS, markdown
from ddpm.nets.denoiser import to_image
from ddpm.pictures.images import read_picture, to_uint8
from ddpm.sampling import coarse_sampler, predict_x0, sample
from ddpm.schedule import cosine_alphas_cumprod

# Pictures on the contact sheet.
SHOWN = 4


class Figure1(Section):
    """Quality against sampling steps."""

    name = "fig1"

    def needs(self) -> list[Method]:
        """Chains of S steps."""
        return self.study.chains()

    def write(self, page: Page) -> str:
        """Table and plot."""
        entries = [page.entry(method, f"{page.entries[method.name]['nfe']:.0f} steps") for method in self.methods]
        return "\n\n".join(
            [
                "## Figure 1: quality against sampling steps",
                "The ancestral chain from noise to the clean image, on the cosine schedule of S steps.",
                page.table(self.name, entries, [*self.study.metrics, "seconds"]),
                best_by_metric(entries, self.study.metrics),
                page.plot(
                    self.name,
                    quality_against({"S steps": page.series(self.methods)}),
                    "Quality against sampling steps",
                ),
            ]
        )


class Figure5(Section):
    """The perception-distortion plane."""

    name = "fig5"

    def needs(self) -> list[Method]:
        """All lines of the plot."""
        return [method for methods in self._lines().values() for method in methods]

    def _lines(self) -> dict[str, list[Method]]:
        """Heading → methods."""
        study = self.study
        return {
            f"DDPM-{study.T}": [study.full_chain()],
            pair_name(study.plan): study.own_starts(),
            **study.pairs(),
            **{method.name: [method] for method in (*study.agents_of(5), *study.schedules)},
            **study.jump_curves(),
            **study.peers(),
        }

    def write(self, page: Page) -> str:
        """Plot and table."""
        study, lines = self.study, self._lines()
        points = {
            heading: [("", page.entries[heading])] if heading in page.entries else page.series(methods)
            for heading, methods in lines.items()
        }
        notes = []
        if not any(penalty_of(study.agents[name]) for name in study.agent_names(5)):
            command = page.train_command("penalty", " --nfe-penalty 0.0015 --crop center")
            notes.append(f"There was no agent that pays for its forwards. One: {command}.")
        if not study.has_peers:
            notes.append(NO_PEERS)
        return "\n\n".join(
            [
                "## Figure 5: perception against distortion",
                "Pairs (S, N) with some of their fixed starts (the number beside the point), agents, and other "
                "samplers on the same net "
                "(their forwards beside the point). A point that lies far off all others is outside the frame; the "
                "table has it.",
                page.plot(self.name, perception_distortion(points), "Perception-distortion plane"),
                page.table(self.name, [page.entry(method) for method in self.methods], page.quality),
                *notes,
            ]
        )


class Figures36(Section):
    """Pictures side by side, and the latents of both diffusions."""

    name = "pictures"

    def needs(self) -> list[Method]:
        """The columns of the contact sheet."""
        study = self.study
        shown = [study.full_chain(), study.coarse_chain(), study.skipdiff(), ways.originals()]
        return [*ways.without_forwards(study.unet), *shown]

    def prepare(self, out: Path) -> None:
        """Fig. 6: latents and estimates of the full and of the coarse diffusion, at the levels that both visit."""
        path, study, plan = out / "latents.png", self.study, self.study.plan
        if path.exists():
            return
        schedules = cosine_alphas_cumprod(study.T), cosine_alphas_cumprod(plan.S)
        batch = study.runner.batch(study.crops[0][None].to(study.config.device))
        seen: list[torch.Tensor] = []
        hook = study.unet.register_forward_hook(lambda module, args, out: seen.append(args[1]))
        with torch.inference_mode():
            sample(study.unet, schedules[0], batch.lr_up, batch.noise)
            full = seen[:: plan.N]
            seen.clear()
            last = coarse_sampler(plan.coarse_sampler)(study.unet, schedules[1], batch.lr_up, batch.noise)
            coarse = [*seen, last]
        hook.remove()
        columns: dict[str, list[NDArray[np.uint8]]] = {}
        with torch.inference_mode():
            for j, ours, theirs in zip(range(plan.S, 0, -1), coarse, full, strict=True):
                cells = columns[f"t = {plan.N * j}"] = []
                for x_t, schedule, t in ((theirs, schedules[0], plan.N * j), (ours, schedules[1], j)):
                    x0 = predict_x0(study.unet, schedule, t, x_t, batch.lr_up)
                    # a third of a latent shows nearly all of its noise
                    cells += [to_uint8(x_t[0] / 3), to_uint8(to_image(study.unet, x0, batch.lr_up)[0])]
        save(contact_sheet(columns), path)

    def write(self, page: Page) -> str:
        """Both figures."""
        study = self.study
        images = range(min(SHOWN, len(study.crops)))
        columns = {
            "original" if method.family == ORIGINALS else page.label(method.name): [
                read_picture(picture_path(page.out / "pictures", image, method.name)).rgb for image in images
            ]
            for method in self.methods
        }
        return "\n\n".join(
            [
                "## Figures 3 and 6: pictures and latents",
                page.plot("fig3", contact_sheet(columns), "Pictures"),
                f"Below: the first picture under noise seed 0, at the levels that both diffusions visit. From the top: "
                f"latent "
                f"and estimate of x_0 in the full diffusion ({study.T} steps), and in the coarse one ({study.plan.S} "
                f"steps).",
                "![Latents and estimates](latents.png)",
            ]
        )


def fronts(entries: Sequence[Mapping[str, Any]], metrics: Iterable[str]) -> str:
    """Which methods are on the front of each pair of forwards and the metrics that judge, as Markdown."""
    pairs = combinations(["nfe", *judged(metrics)], 2)
    rows = [(f"{COLUMNS[a][0]}, {COLUMNS[b][0]}", "; ".join(front(entries, (a, b)))) for a, b in pairs]
    if not rows:
        return ""
    return "\n\n".join(
        [
            "For each pair of figures, these methods are on the front: no other method is at least as good in both "
            "figures and better in one. The best in the first figure stands first.",
            markdown(("figures", "on the front"), rows),
        ]
    )


class Peers(Section):
    """Other samplers at equal forwards."""

    name = "peers"

    def needs(self) -> list[Method]:
        """None without diffusers."""
        peers = [method for methods in self.study.peers().values() for method in methods]
        if not peers:
            return []
        curves = [method for methods in self.study.jump_curves().values() for method in methods]
        return [self.study.skipdiff(), *curves, *self.study.budget_chains(), *self.study.schedules, *peers]

    def write(self, page: Page) -> str:
        """Verdicts, table and plot."""
        title = "## Other samplers on the same net at equal forwards"
        peers = self.study.peers()
        if not peers:
            return f"{title}\n\n{NO_PEERS}"
        others = {"DDPM of S steps": self.study.budget_chains(), **peers, **self.study.jump_curves()}
        others |= {method.name: [method] for method in self.study.schedules}
        rows = page.of(self.methods)
        entries = [{**entry, "method": page.label(entry["method"])} for entry in summarise(rows)]
        points = {heading: page.series(methods) for heading, methods in others.items()}
        points[page.label(page.skipdiff.name)] = [("", page.entries[page.skipdiff.name])]
        names = {heading: [method.name for method in methods] for heading, methods in others.items()}
        return "\n\n".join(
            [
                title,
                "Through diffusers' schedulers, on the same net, schedule and noise. Each peer at its budget that is "
                "the nearest to "
                "SkipDiff's forwards and not above:",
                peer_verdicts(rows, page.skipdiff.name, names),
                domination_note(self.study.metrics),
                page.table(self.name, sorted(entries, key=lambda entry: entry["nfe"]), [*page.quality, "dominated_by"]),
                fronts(entries, self.study.metrics),
                page.plot(self.name, quality_against(points), "Quality against forwards"),
                "A point that lies far off all others is outside the frame; the table has it.",
            ]
        )


def seed_means(rows: Sequence[Row], metric: str) -> NDArray[np.float64]:
    """The mean of a metric over pictures, one for each noise seed; failures are left out."""
    seeds = sorted({row.seed for row in rows})
    return np.array([np.nanmean([row.metrics[metric] for row in rows if row.seed == seed]) for seed in seeds])


def peer_verdicts(rows: Sequence[Row], ours: str, peers: Mapping[str, Sequence[str]]) -> str:
    """Where peers are better than a method, each at its largest budget that is not above the method's forwards.

    Args:
        rows: of the method and the peers.
        ours: the method.
        peers: heading → methods, one each budget.

    Returns:
        Markdown: a line for each peer, and one for each metric.
    """
    every = by_method(rows)
    forwards = {method: float(np.mean([row.nfe for row in own])) for method, own in every.items()}
    lines = []
    names = list(every[ours][0].metrics)
    ahead: dict[str, list[str]] = {name: [] for name in names}
    for heading, methods in peers.items():
        within = [method for method in methods if forwards[method] <= forwards[ours]]
        if not within:
            lines.append(f"- **{heading}**: no budget of at most {forwards[ours]:.1f} forwards was run.")
            continue
        chosen = max(within, key=forwards.__getitem__)
        better_in, others = [], []
        for name in names:
            heading_of, digits = COLUMNS[name]
            own, peer = seed_means(every[ours], name), seed_means(every[chosen], name)
            if not better(name, float(peer.mean()), float(own.mean())):
                others.append(heading_of)
                continue
            ahead[name].append(heading)
            always = all(better(name, b, a) for a, b in zip(own, peer, strict=True))
            doubt = "" if always else ", not under every noise seed"
            better_in.append(f"{heading_of} ({peer.mean():.{digits}f} against {own.mean():.{digits}f}{doubt})")
        said = f"better than SkipDiff in {', '.join(better_in)}" if better_in else "in nothing better than SkipDiff"
        rest = f"; not in {', '.join(others)}" if better_in and others else ""
        lines.append(f"- **{heading}**, {forwards[chosen]:g} forwards (SkipDiff {forwards[ours]:.1f}): {said}{rest}.")
    lines.append("")
    lines += [
        f"- {COLUMNS[name][0]}: {'ahead of SkipDiff are ' + ', '.join(own) if own else 'none is ahead of SkipDiff'}."
        for name, own in ahead.items()
    ]
    return "\n".join(lines)
