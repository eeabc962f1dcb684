"""Tests of the Triton kernels alone: compilation for GPUs, and dispatch on CUDA."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from polylosses.torch import implementation, poly_cross_entropy
from polylosses.torch.kernels import dispatch, triton
from test_torch_kernels import Y, Z, needs_triton

pytestmark = needs_triton


@pytest.mark.slow
def test_what_the_kernels_become_on_an_h100(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    command = [sys.executable, "-W", "error", str(Path(__file__).with_name("compiled_for_cuda.py")), "90"]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600, env=environment)
    assert result.returncode == 0, result.stderr
    compiled: list[dict[str, Any]] = [json.loads(line) for line in result.stdout.splitlines()]
    soft = {"soft_target_loss", "soft_target_gradient"}
    assert {one["kernel"] for one in compiled} == {"softmax_statistics", "softmax_gradient", "sigmoids", *soft}
    assert len({str(one) for one in compiled}) >= 26
    for one in compiled:
        assert one["bytes"] > 1000
        # No register spills.
        assert one["stack"] == 0, one
        # The kernels that read labels assert that they are in range.
        of_labels = one["kernel"] in ("sigmoids", "soft_target_loss") and not one["options"]["DENSE"]
        reads_labels = one["kernel"] == "softmax_statistics" or of_labels
        assert one["asserts"] == reads_labels, one
        if one["options"]["CLASSES"] >= 1024:
            assert one["loads of 16 bytes"] >= (4 if one["dtype"] == "torch.float32" else 2), one


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_the_numbers_on_cuda() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, str(Path(__file__).with_name("on_cuda.py")), "cuda"]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=1800, env=environment)
    assert result.returncode == 0, result.stdout + result.stderr


class OnCuda:
    """Stand-in for logits on a GPU."""

    device = torch.device("cuda", 0)
    layout = torch.strided

    def __init__(self, logits: torch.Tensor) -> None:
        self.dtype, self.shape, self.dim, self.numel = logits.dtype, logits.shape, logits.dim, logits.numel


def test_it_serves_who_asks_on_cuda_until_it_has_run_on_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("is_ordinary", "is_by_address"):
        monkeypatch.setattr(dispatch, name, lambda tensor: True)
    for z in (Z, Z.half(), Z.bfloat16(), Z[:1, :2]):
        assert dispatch.choose(None, OnCuda(z), (), None, None, dispatch.FEWEST_LOGITS) == "plain"  # type: ignore[arg-type]
        assert dispatch.choose("triton", OnCuda(z), (), None, None) == "triton"  # type: ignore[arg-type]
        found = implementation(lambda z: dispatch.choose(None, z, (), None, None), OnCuda(z))
        assert found == ("plain", {"triton": "it has not been run on a GPU yet; implementation='triton' asks for it"})
    for installed, z in ((True, Z.double()), (False, Z)):
        monkeypatch.setattr(triton, "_INSTALLED", installed)
        with pytest.raises(ValueError, match=r"can't serve here: it (serves|needs)"):
            dispatch.choose("triton", OnCuda(z), (), None, None)  # type: ignore[arg-type]


def test_elsewhere_it_says_why_not(monkeypatch: pytest.MonkeyPatch) -> None:
    for logits, reason in (
        (Z.double(), "float32, bfloat16 and float16 logits, and these are torch.float64"),
        (Z[:1, :1].expand(64, 2**30), "fewer than 2^30 classes, and there are 1073741824"),
    ):
        with pytest.raises(ValueError, match="can't serve here: ") as raised:
            poly_cross_entropy(logits, Y, implementation="triton")
        assert reason in str(raised.value)
    monkeypatch.setattr(triton, "_INTERPRETED", False)
    with pytest.raises(ValueError, match="it serves CUDA devices, and the logits are on cpu"):
        poly_cross_entropy(Z, Y, implementation="triton")
    monkeypatch.setattr(triton, "_INSTALLED", False)
    with pytest.raises(ValueError, match=r"needs the package triton .* \(triton 3\.3\)"):
        poly_cross_entropy(Z, Y, implementation="triton")


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_float16_is_float32_rounded_once(label_smoothing: float) -> None:
    z = Z[:16].half().requires_grad_()
    right = z.detach().double().requires_grad_()
    options: Any = {"gamma": 0.5, "label_smoothing": label_smoothing}
    value = poly_cross_entropy(z, Y[:16], **options, implementation="triton")
    expected = poly_cross_entropy(right, Y[:16], **options, implementation="plain")
    (value * 1000).backward()  # type: ignore[no-untyped-call]
    (expected * 1000).backward()  # type: ignore[no-untyped-call]
    assert z.grad is not None
    assert right.grad is not None
    assert value.dtype == torch.float16
    assert abs(value - expected) <= 2.0**-11 * expected
    assert ((z.grad - right.grad).abs() <= 2.0**-11 * right.grad.abs() + 2.0**-25).all()
