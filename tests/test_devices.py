"""What is decided about a device, and the one global setting of torch that products touch."""

import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch

from skcompressae._torch import _devices
from skcompressae._torch._devices import free_bytes, has_float64, matmul_precision, uses_triton

CUDA = torch.device("cuda")  # names one; the settings need none
MATMUL = torch.backends.cuda.matmul


@pytest.fixture
def restored():
    yield
    torch.set_float32_matmul_precision("highest")
    if hasattr(MATMUL, "fp32_precision"):
        for setting in (MATMUL, torch.backends.mkldnn.matmul, torch.backends):
            setting.fp32_precision = "none"


newer = pytest.mark.skipif(not hasattr(MATMUL, "fp32_precision"), reason="torch before 2.9 has the old name only")


@pytest.mark.parametrize("is_allowed", [True, False])
@pytest.mark.parametrize("precision", ["float32", "tf32", "bfloat16"])
def test_products_round_to_tf32_only_where_asked(restored, is_allowed, precision):
    MATMUL.allow_tf32 = is_allowed
    with matmul_precision(precision, CUDA):
        assert MATMUL.allow_tf32 == (precision == "tf32")
    assert MATMUL.allow_tf32 == is_allowed


def test_the_setting_of_other_devices_is_left_alone(restored):
    MATMUL.allow_tf32 = True
    with matmul_precision("float32", torch.device("cpu")):
        assert MATMUL.allow_tf32


@newer
@pytest.mark.parametrize("theirs", ["tf32", "ieee", "none"])
def test_what_the_user_set_by_the_new_name_is_kept(restored, theirs):
    MATMUL.fp32_precision = theirs
    for precision in ("float32", "tf32"):
        with matmul_precision(precision, CUDA):
            assert (MATMUL.fp32_precision == "tf32") == (precision == "tf32")
        assert MATMUL.fp32_precision == theirs


@pytest.mark.parametrize("theirs", ["highest", "high", "medium"])
def test_what_the_user_set_for_all_devices_is_kept(restored, theirs):
    torch.set_float32_matmul_precision(theirs)
    for precision in ("float32", "tf32"):
        with matmul_precision(precision, CUDA):
            if hasattr(MATMUL, "fp32_precision"):
                assert (MATMUL.fp32_precision == "tf32") == (precision == "tf32")
            else:
                assert MATMUL.allow_tf32 == (precision == "tf32")
        assert torch.get_float32_matmul_precision() == theirs
        assert MATMUL.allow_tf32 == (theirs != "highest")


@newer
def test_what_follows_the_general_setting_does_so_afterwards(restored):
    torch.backends.mkldnn.matmul.fp32_precision = "bf16"
    for theirs, other in (("tf32", "ieee"), ("ieee", "tf32")):
        torch.backends.fp32_precision = theirs
        for precision in ("float32", "tf32"):
            with matmul_precision(precision, CUDA):
                assert (MATMUL.fp32_precision == "tf32") == (precision == "tf32")
            assert MATMUL.fp32_precision == theirs
        torch.backends.fp32_precision = other
        assert MATMUL.fp32_precision == other
        assert torch.backends.mkldnn.matmul.fp32_precision == "bf16"


def test_what_is_right_already_is_not_written(restored, monkeypatch):
    def fail(*arguments):
        pytest.fail("written")

    for allows, precision in ((False, "float32"), (True, "tf32")):
        MATMUL.allow_tf32 = allows
        with monkeypatch.context() as patched:
            patched.setattr(type(MATMUL), "__setattr__", fail)
            patched.setattr(torch, "set_float32_matmul_precision", fail)
            with matmul_precision(precision, CUDA), matmul_precision(precision, CUDA):
                assert MATMUL.allow_tf32 == allows


@pytest.mark.parametrize("is_allowed", [True, False])
def test_threads_do_not_change_the_precision_of_others(restored, is_allowed):
    MATMUL.allow_tf32 = is_allowed

    def multiply(precision):
        found = []
        for _ in range(200):
            with matmul_precision(precision, CUDA):
                time.sleep(0)  # lets others in
                with matmul_precision("float32", CUDA):
                    found.append(not MATMUL.allow_tf32)
                found.append(MATMUL.allow_tf32 == (precision == "tf32"))
        return all(found)

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(multiply, ["float32", "tf32"] * 2))
    assert MATMUL.allow_tf32 == is_allowed


def test_kernels_are_for_cuda_only():
    assert not uses_triton(torch.zeros(1))
    assert has_float64(CUDA)
    assert not has_float64(torch.device("mps"))


@pytest.mark.parametrize(
    ("capability", "has_triton", "expected"),
    [((9, 0), True, True), ((7, 0), True, True), ((6, 1), True, False), ((9, 0), False, False)],
)
def test_kernels_are_for_devices_that_they_compile_for(monkeypatch, capability, has_triton, expected):
    monkeypatch.setattr(_devices, "_has_triton", lambda: has_triton)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    _devices._compiles_for.cache_clear()
    try:
        assert uses_triton(SimpleNamespace(is_cuda=True, device=torch.device("cuda:0"))) is expected
    finally:
        _devices._compiles_for.cache_clear()


def test_memory_is_asked_for_by_the_number_of_the_device(monkeypatch):
    """Torch before 2.5 takes no other."""
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: ({0: 5, 1: 7}[device.index], 9))
    assert free_bytes(CUDA) == 7
    assert free_bytes(torch.device("cuda:0")) == 5
