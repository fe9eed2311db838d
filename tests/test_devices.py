"""What is decided about a device, and the one global setting of torch that products touch."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from skcompressae._torch._devices import has_float64, matmul_precision, uses_triton

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
