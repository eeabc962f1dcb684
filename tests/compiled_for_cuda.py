"""Cross-compiles all Triton kernels to GPU machine code, without needing a GPU, and prints the results.

The argument is the compute capability, such as 90. test_torch_triton.py runs this script, without TRITON_INTERPRET.
"""

import json
import subprocess
import sys
import tempfile
from typing import Any

import torch
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from polylosses import asymmetric
from polylosses.torch import poly_binary_cross_entropy_with_logits, poly_cross_entropy
from polylosses.torch.kernels import triton, triton_kernels


class Driver:
    """The part of a Triton driver that compilation needs."""

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", int(sys.argv[1]), 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def stack_of(machine_code: bytes) -> int:
    """The stack size per thread in bytes, which includes register spills. PTX does not show those."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(machine_code)
        file.flush()
        command = [knobs.nvidia.cuobjdump.path, "-res-usage", file.name]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return int(said.partition("STACK:")[2].split()[0])


def compile_only(name: str, programs: int, *arguments: Any, **options: Any) -> None:
    compiled = getattr(triton_kernels, name).warmup(*arguments, grid=(programs,), **options, **triton._OPTIONS)
    words = compiled.asm["ptx"].split()
    print(
        json.dumps(
            {
                "kernel": name,
                "options": options,
                "dtype": str(arguments[0].dtype),
                "bytes": len(compiled.asm["cubin"]),
                "loads of 16 bytes": sum(word.startswith(("ld.global.v4.b32", "ld.global.v2.b64")) for word in words),
                "stack": stack_of(compiled.asm["cubin"]),
                "asserts": "out of bounds" in compiled.asm["ttir"],
            }
        )
    )


def main() -> None:
    driver.set_active(Driver())
    triton._INTERPRETED, triton._launch = True, compile_only

    # Not every kernel for every dtype and shape, since each takes a second to compile.
    for dtype, shapes in ((torch.float32, [(8, 32000), (4, 150, 16, 16), (300, 21)]), (torch.bfloat16, [(8, 32000)])):
        for shape in shapes:
            z = torch.zeros(shape, dtype=dtype, requires_grad=True)
            y = torch.zeros((shape[0], *shape[2:]), dtype=torch.int64)
            numbers = poly_cross_entropy(
                z, y, torch.ones(shape[1], dtype=dtype), epsilon=(1.0, 2.0), gamma=0.5, implementation="triton"
            )
            numbers.backward()  # type: ignore[no-untyped-call]
        learned = poly_cross_entropy(z, y, epsilon=torch.tensor(1.0, requires_grad=True), implementation="triton")
        learned.backward()  # type: ignore[no-untyped-call]
    for dtype, shape, dense in (
        (torch.float32, (8, 32000), True),
        (torch.bfloat16, (8, 32000), False),
        (torch.bfloat16, (4, 150, 16, 16), True),
        (torch.float32, (300, 21), False),
    ):
        z = torch.zeros(shape, dtype=dtype, requires_grad=True)
        y = torch.zeros(shape, dtype=dtype) if dense else torch.zeros((shape[0], *shape[2:]), dtype=torch.int64)
        options: Any = {"epsilon": (1.0, 2.0), "gamma": 0.5, "label_smoothing": 0.1, "implementation": "triton"}
        loss = poly_cross_entropy(z, y, torch.ones(shape[1], dtype=dtype), **options)
        loss.backward()  # type: ignore[no-untyped-call]
    for dtype, dense, reduction in (
        (torch.float32, True, "mean"),
        (torch.float32, False, "mean"),
        (torch.bfloat16, True, "none"),
        (torch.bfloat16, False, "none"),
    ):
        z = torch.zeros(64, 80, dtype=dtype, requires_grad=True)
        y = torch.zeros(64, 80, dtype=dtype) if dense else torch.zeros(64, dtype=torch.int64)
        loss = poly_binary_cross_entropy_with_logits(
            z, y, gamma=2.0, alpha=0.25, ignore_index=7, reduction=reduction, implementation="triton"
        )
        loss.sum().backward()  # type: ignore[no-untyped-call]
        two_sided = poly_binary_cross_entropy_with_logits(
            *(z, y, torch.ones(64, 1, dtype=dtype)), pos_weight=torch.ones(80), polynomial=asymmetric(4.0, 0.5),
            reduction=reduction, implementation="triton",
        )  # fmt: skip
        two_sided.sum().backward()  # type: ignore[no-untyped-call]


if __name__ == "__main__":
    main()
