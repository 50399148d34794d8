"""One picture of the restored photos, a row per task: input, two members, the baseline and the truth."""

import io
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure

from ...data import TASKS

Pictures = Float[np.ndarray, "n h w 3"]


def figure(columns: Sequence[tuple[str, Pictures]], psnr: Sequence[Sequence[float]]) -> bytes:
    """Draw a PNG.

    Args:
        columns: (title, pictures), the truth last.
        psnr: psnr[row][column] is printed under all pictures but the truth.
    """
    rows, n = len(TASKS), len(columns)
    fig = Figure(figsize=(1.6 * n + 0.5, 1.74 * rows + 0.5), dpi=120)
    left, top = 0.5 / (1.6 * n + 0.5), 1 - 0.5 / (1.74 * rows + 0.5)
    axes = fig.subplots(
        rows,
        n,
        gridspec_kw={
            "left": left,
            "right": 0.995,
            "bottom": 0.014,
            "top": top,
            "wspace": 0.03,
            "hspace": 0.13,
        },
    )
    for i, task in enumerate(TASKS):
        best = max(range(1, n - 1), key=lambda j: psnr[i][j])
        for j, (title, pictures) in enumerate(columns):
            ax = axes[i, j]
            ax.imshow(np.clip(pictures[i], 0, 1), interpolation="lanczos")
            ax.set_xticks([])
            ax.set_yticks([])
            ax.spines[:].set_visible(False)
            if i == 0:
                ax.set_title(title, fontsize=10, pad=5)
            if j == 0:
                ax.set_ylabel(task, fontsize=10)
            if j < n - 1:
                ax.set_xlabel(
                    f"{psnr[i][j]:.1f} dB",
                    fontsize=9,
                    labelpad=2,
                    fontweight="bold" if j == best else "normal",
                )
    file = io.BytesIO()
    fig.savefig(file, format="png")
    return file.getvalue()
