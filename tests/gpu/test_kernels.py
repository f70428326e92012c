"""Every kernel on a CUDA device, against its reference in float64; at the sizes of the released models too."""

import pytest
import torch
from kernel_cases import EIGHT_BITS, REAL, REAL_EIGHT_BITS, SMALL, each, name_of

from svd_core import kernels
from svd_core.kernels.choice import Choices, _complaint, error_of, incapable
from svd_core.kernels.fp8_linear import LEAST_CAPABILITY

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def full_precision():
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False


@pytest.fixture(autouse=True)
def capable():
    assert not incapable(torch.device("cuda", 0)), "these tests are for devices that kernels run on"


@pytest.mark.parametrize(("case", "dtype"), list(each(SMALL)), ids=name_of)
def test_a_kernel_is_as_close_to_float64_as_torch(case, dtype):
    args = case.arguments(dtype, "cuda")
    for name, kernel in case.operation.kernels().items():
        assert not error_of(case.operation, kernel, args), name


@pytest.mark.parametrize(("case", "dtype"), list(each(REAL)), ids=name_of)
def test_a_kernel_is_right_at_real_size(case, dtype):
    args = case.arguments(dtype, "cuda")
    for name, kernel in case.operation.kernels().items():
        assert not _complaint(case.operation, kernel, args), name


@pytest.fixture
def eight_bits():
    if torch.cuda.get_device_capability() < LEAST_CAPABILITY:
        pytest.skip("the device has no products of eight-bit floats")


@pytest.mark.usefixtures("eight_bits")
@pytest.mark.parametrize(("case", "dtype"), list(each((*EIGHT_BITS, REAL_EIGHT_BITS))), ids=name_of)
def test_some_product_of_eight_bits_is_right(case, dtype):
    args = case.arguments(dtype, "cuda")
    wrong = {name: _complaint(case.operation, kernel, args) for name, kernel in case.operation.kernels().items()}
    print(wrong)  # torch's own takes only some dtypes
    assert not all(wrong.values()), wrong


@pytest.mark.usefixtures("eight_bits")
def test_the_probe_chooses_a_product_of_eight_bits(monkeypatch):
    choices = Choices()
    monkeypatch.setattr(kernels.choice, "choices", lambda: choices)
    with torch.inference_mode():
        REAL_EIGHT_BITS.operation(*REAL_EIGHT_BITS.arguments(torch.bfloat16, "cuda"))
    print(kernels.report())
    assert [choice.name != "reference" for choice in choices.made.values()] == [True], kernels.report()


def test_the_probe_chooses_and_says_why(monkeypatch):
    choices = Choices()
    monkeypatch.setattr(kernels.choice, "choices", lambda: choices)
    probed = set()
    with torch.inference_mode():
        for case in REAL:
            args = case.arguments(torch.bfloat16, "cuda")
            case.operation(*args)
            probed.add((case.operation.name, case.operation.shape_class(*args)))  # a band's holds for a strip
    print(kernels.report())
    assert len(choices.made) == len(probed)
    assert all("ms" in choice.reason for choice in choices.made.values()), kernels.report()
