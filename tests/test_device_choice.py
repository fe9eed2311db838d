"""Which device is taken, and that a process on a CPU does without torch where nothing needs it."""

import subprocess
import sys

import pytest
import torch

from skcompressae import CodeNearestNeighbors
from skcompressae._model_io import library_versions
from skcompressae._torch import _device_choice, _devices
from skcompressae._torch._device_choice import CPU, finds_cuda, may_have_accelerator, resolve_device, torch_version

WORK = """
import pickle, sys, warnings
import numpy as np
from skcompressae import CodeNearestNeighbors, CompresSAETransformer, load_model, save_model
warnings.simplefilter("ignore")
X = np.random.RandomState(0).standard_normal((300, 24)).astype(np.float32)
compressor = CompresSAETransformer(n_components=32, k=4, max_iter=3, device="cpu", random_state=0).fit(X)
compressor = pickle.loads(pickle.dumps(compressor))
codes = compressor.transform(X)
compressor.inverse_transform(codes)
compressor.score(X)
CodeNearestNeighbors(3, compressor=compressor).fit(codes).kneighbors(X[:2])
save_model(compressor, sys.argv[1])
load_model(sys.argv[1]).transform_packed(X)
print("torch" in sys.modules)
"""


class Machine:
    """A machine on which `may_have_accelerator` looks around."""

    def __init__(self, monkeypatch, folder, *, version="2.13.0", platform="linux", has_driver=False, files=()):
        def find_version(name):
            assert name == "torch"
            if version is None:
                raise _device_choice.PackageNotFoundError(name)
            return version

        def load(name):
            assert name == "libcuda.so.1"
            if not has_driver:
                raise OSError(name)

        for name in files:
            (folder / name).touch()
        monkeypatch.setattr(_device_choice, "version", find_version)
        monkeypatch.setattr(_device_choice, "Path", lambda name: folder if name == "/dev" else None)
        monkeypatch.setattr(_device_choice.ctypes, "CDLL", load)
        monkeypatch.setattr(_device_choice.sys, "platform", platform)

    found = staticmethod(may_have_accelerator.__wrapped__)  # what is found is kept


@pytest.mark.parametrize(
    ("expected", "facts"),
    [
        (False, {}),
        (False, {"version": None}),
        (False, {"version": "2.13.0+cpu", "has_driver": True, "files": ["nvidiactl"]}),
        (False, {"version": "2.13.0+cpu", "platform": "win32"}),
        (False, {"files": ["null", "nvme0"]}),
        (True, {"has_driver": True}),
        (True, {"version": None, "has_driver": True}),
        (True, {"version": "2.13.0+cu130", "files": ["nvidia0"]}),
        (True, {"files": ["nvidiactl"]}),
        (True, {"files": ["nvhost-ctrl-gpu"]}),
        (True, {"files": ["dxg"]}),
        (True, {"version": "2.13.0+rocm6.4", "files": ["kfd"]}),
        (True, {"platform": "darwin"}),
        (True, {"platform": "win32"}),
    ],
)
def test_torch_is_asked_where_it_might_find_a_device(monkeypatch, tmp_path, expected, facts):
    assert Machine(monkeypatch, tmp_path, **facts).found() is expected


def test_where_it_cannot_auto_is_the_cpu(monkeypatch):
    monkeypatch.setattr(_device_choice, "may_have_accelerator", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: pytest.fail("torch was asked"))
    assert resolve_device("auto") is CPU
    assert not finds_cuda()
    assert CodeNearestNeighbors(device="auto")._device() == "cpu"


@pytest.mark.parametrize("kind", ["cuda", "mps", "cpu"])
def test_where_it_might_torch_decides(monkeypatch, kind):
    monkeypatch.setattr(_device_choice, "may_have_accelerator", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: kind == "cuda")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: kind == "mps")
    assert resolve_device("auto").type == kind
    assert finds_cuda() == (kind == "cuda")


def test_a_device_that_is_named_is_looked_for_by_torch(monkeypatch):
    monkeypatch.setattr(_device_choice, "may_have_accelerator", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="torch sees 0 CUDA device"):
        resolve_device("cuda")
    with pytest.raises(ValueError, match="device must be 'auto', 'cpu'"):
        resolve_device("abacus")
    assert resolve_device("cpu:0") is CPU


def test_the_cpu_is_a_device_of_torch_too():
    assert _devices.torch_device(CPU) == _devices.with_index(CPU) == torch.device("cpu")
    assert _devices.torch_device(torch.device("cuda:1")) == torch.device("cuda:1")
    assert str(CPU) == "cpu"


def test_torch_says_its_version_where_its_metadata_are_missing(monkeypatch, tmp_path):
    assert torch_version().split("+")[0] == torch.__version__.split("+")[0]
    Machine(monkeypatch, tmp_path, version=None)
    assert torch_version() == torch.__version__
    assert library_versions()["torch"] == torch.__version__


def test_fit_transform_search_and_files_load_no_torch_on_a_cpu(tmp_path):
    command = [sys.executable, "-c", WORK, str(tmp_path / "model.safetensors")]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.split() == ["False"]
