"""The figures of the paper, with its pictures and networks, which tables show beside ours."""

from collections.abc import Sequence
from typing import Any

from agents.tables import COLUMNS

NAMES = ("psnr", "ssim", "niqe", "lpips", "nfe")
# Tables 1 and 2, by scale: PSNR, SSIM, NIQE, LPIPS, forwards.
RESULTS: dict[int, dict[str, tuple[float, ...]]] = {
    8: {
        "bicubic": (23.49, 0.6003, 13.45, 0.5374, 0),
        "DDPM": (24.79, 0.6766, 7.30, 0.0992, 100),
        "SkipDiff": (25.60, 0.6838, 6.47, 0.0967, 16),
    },
    4: {
        "bicubic": (25.60, 0.6594, 8.68, 0.4716, 0),
        "DDRM": (26.68, 0.7089, 9.48, 0.3499, 20),
        "DDPM": (26.38, 0.6871, 5.00, 0.1909, 100),
        "SkipDiff": (26.65, 0.6884, 4.95, 0.1886, 20),
    },
}
DATA = {8: "faces 8x, 16 → 128 px, of CelebA-HQ", 4: "natural photographs 4x, 64 → 256 px, of ImageNet"}
# Table 4, on faces; by case.
CASES = {1: RESULTS[8]["DDPM"], 2: (25.80, 0.7204, 9.09, 0.1160, 10), 5: RESULTS[8]["SkipDiff"]}
# Table 5, on faces with N = 10: NIQE and LPIPS of starts 9 … 1.
STARTS = {
    9: (7.13, 0.0984), 8: (6.53, 0.0965), 7: (6.47, 0.0964), 6: (7.22, 0.1022), 5: (8.26, 0.1200), 4: (9.27, 0.1526),
    3: (10.34, 0.1974), 2: (11.39, 0.2518), 1: (12.63, 0.3104),
}  # fmt: skip
# Table 3, at 256 px: seconds and GFLOPs.
SPEED = {"DDPM": (4.17, 17799.0), "SkipDiff": (0.69, 2848.0)}
# Columns of the paper's figures: name → (heading, digits).
HEADINGS = {
    **{f"paper_{name}": (f"{COLUMNS[name][0]}, paper", COLUMNS[name][1]) for name in NAMES},
    "paper_nfe": ("NFE, paper", 0),
    "paper_seconds": ("s, paper", 2), "paper_gflops": ("GFLOPs, paper", 0),
    "paper_seconds_ratio": ("times faster, paper", 1), "paper_flops_ratio": ("times fewer FLOPs, paper", 2),
}  # fmt: skip


def columns(figures: Sequence[float] | None) -> dict[str, Any]:
    """Return the paper's figures as the columns of an entry; empty where the paper has none."""
    return {} if figures is None else {f"paper_{name}": value for name, value in zip(NAMES, figures, strict=True)}
