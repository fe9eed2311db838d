"""The picture of the method: one image, its code, the latents in it, and what they add up to."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

from skcompressae import CompresSAETransformer

K = 6
N_COMPONENTS = 64


def draw_code(path: Path, shown: int = 3) -> None:
    """Draw a handwritten digit (64 numbers) as a few signed latents."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    X = load_digits().data.astype(np.float32)
    model = CompresSAETransformer(n_components=N_COMPONENTS, k=K, learning_rate=1e-3, max_iter=400, random_state=0).fit(
        X
    )
    code = model.transform(X[shown : shown + 1])
    image, restored = X[shown], model.inverse_transform(code)[0]
    cosine = float(image @ restored / np.linalg.norm(image) / np.linalg.norm(restored))
    order = np.argsort(-np.abs(code.data))
    latents, values = code.indices[order], code.data[order]

    figure = Figure(figsize=(7.6, 4.4), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=(1.25, 1))
    left, middle, right = top.subplots(1, 3, width_ratios=(1, 2.2, 1))
    limits = {"cmap": "RdBu_r", "vmin": -16, "vmax": 16}
    left.imshow(image.reshape(8, 8), **limits)
    left.set_title("row x\n64 numbers", fontsize=11)
    middle.vlines(code.indices, 0, code.data, color="#0072B2", linewidth=2.5)
    middle.axhline(0, color="0.4", linewidth=0.8)
    middle.set_xlim(-1, N_COMPONENTS)
    middle.set_xlabel("latent")
    middle.set_title(f"code s\n{K} nonzeros of {N_COMPONENTS}", fontsize=11)
    right.imshow(restored.reshape(8, 8), **limits)
    right.set_title(f"reconstruction s D\ncosine {cosine:.2f}", fontsize=11)
    axes = bottom.subplots(1, K)
    bottom.suptitle("the six rows of D in it, each times its value", fontsize=11)
    for axis, latent, value in zip(axes, latents, values, strict=True):
        axis.imshow((value * model.components_[latent]).reshape(8, 8), **limits)
        axis.set_xlabel(f"{value:+.0f} of no. {latent}", fontsize=10)
    for axis in (left, right, *axes):
        axis.set(xticks=[], yticks=[])
    for x in (0.235, 0.775):
        arrow = Line2D(
            [x, x + 0.02], [0.55, 0.55], color="0.3", marker=">", markevery=[1], transform=top.transSubfigure
        )
        top.add_artist(arrow)
    figure.savefig(path)
