"""What is decided about a device, and the one global setting of torch that products touch."""

import pytest
import torch

from skcompressae._torch._devices import has_float64, matmul_precision, uses_triton

CUDA = torch.device("cuda")  # names one; the settings need none
MATMUL = torch.backends.cuda.matmul


@pytest.fixture
def restored():
    before = MATMUL.allow_tf32
    yield
    MATMUL.allow_tf32 = before
    if hasattr(MATMUL, "fp32_precision"):
        MATMUL.fp32_precision = "none"


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


@pytest.mark.skipif(not hasattr(MATMUL, "fp32_precision"), reason="torch before 2.9 has the old name only")
@pytest.mark.parametrize("theirs", ["tf32", "ieee", "none"])
def test_what_the_user_set_by_the_new_name_is_kept(restored, theirs):
    MATMUL.fp32_precision = theirs
    for precision in ("float32", "tf32"):
        with matmul_precision(precision, CUDA):
            assert (MATMUL.fp32_precision == "tf32") == (precision == "tf32")
        assert MATMUL.fp32_precision == theirs
    assert MATMUL.allow_tf32 == (theirs == "tf32")  # readable by the old name, too


def test_kernels_are_for_cuda_only():
    assert not uses_triton(torch.zeros(1))
    assert has_float64(CUDA)
    assert not has_float64(torch.device("mps"))
