"""Do the Triton kernels compile for an H100, and with how many registers? Needs Triton, no GPU.

    python benchmarks/compile_kernels.py --out benchmarks/results/compile_kernels.json

Every launch that training and encoding make at the given shape is compiled to machine code instead of being run, with
the specialisations that Triton would choose. Values that do not fit the registers are spilled to memory
("stack_bytes"), which is slow.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from _common import environment, write_json

os.environ["TRITON_INTERPRET"] = "0"  # before Triton is imported

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from skcompressae._torch._pursuit import GramTable
from skcompressae._torch._triton_pursuit import pursue_triton
from skcompressae._torch._triton_rows import decoded_norms_triton, gathered_dots_triton, unit_rows_triton
from skcompressae._torch._triton_selection import select_triton, spread_triton
from skcompressae._torch._triton_step import cosine_gradients_triton, gathered_gradients_triton, write_slopes_triton

POINTERS = {
    torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.float32: "*fp32", torch.float64: "*fp64",
    torch.int32: "*i32", torch.int64: "*i64",
}  # fmt: skip
# What a launch may say beside the kernel's own arguments.
OPTIONS = ("num_warps", "num_stages", "maxnreg", "enable_fp_fusion")


def compile_launch(kernel: JITFunction, arguments: tuple[Any, ...], keywords: dict[str, Any], target: GPUTarget) -> Any:
    """Compile a kernel for one launch's arguments."""
    options = {name: keywords.pop(name) for name in OPTIONS if name in keywords}
    values = dict(zip(kernel.arg_names, arguments, strict=False)) | keywords
    signature, constants, attributes = {}, {}, {}
    for place, parameter in enumerate(kernel.params):
        name, value = parameter.name, values[parameter.name]
        is_special = not parameter.do_not_specialize
        if parameter.is_constexpr or (is_special and isinstance(value, int) and value == 1):
            signature[name], constants[name] = "constexpr", value
        elif isinstance(value, torch.Tensor):
            signature[name] = POINTERS[value.dtype]
            attributes[place,] = [["tt.divisibility", 16]]
        elif isinstance(value, float):
            signature[name] = "fp32"
        else:
            signature[name] = "i32" if abs(value) < 2**31 else "i64"
            if is_special and value % 16 == 0:
                attributes[place,] = [["tt.divisibility", 16]]
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attributes)
    return triton.compile(source, target=target, options=options)


def resources(machine_code: bytes) -> dict[str, int | None]:
    """Return what the disassembler that Triton ships says of a kernel's registers and stack."""
    program = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    if not program.exists():
        return {"registers": None, "stack_bytes": None}
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(machine_code)
        file.flush()
        run = subprocess.run([program, "-res-usage", file.name], capture_output=True, text=True, check=True)
    (found,) = re.findall(r"REG:(\d+) STACK:(\d+)", run.stdout)
    return {"registers": int(found[0]), "stack_bytes": int(found[1])}


def launches(n_rows: int, n_features: int, n_components: int, k: int) -> dict[str, Any]:
    """Return calls that make every launch at a shape, on tensors without memory."""

    def empty(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    n_active = min(4 * k, n_components)
    x, matrix, bias = empty(n_rows, n_features), empty(n_components, n_features), empty(n_components)
    indices, values = empty(n_rows, n_active, dtype=torch.int32), empty(n_rows, n_active)
    candidates, fired = empty(n_rows, k, dtype=torch.int32), empty(n_components, dtype=torch.int64)
    grams = GramTable(matrix)
    calls = {
        "unit_rows": lambda: unit_rows_triton(x),
        "gathered_dots": lambda: gathered_dots_triton(x, matrix, indices),
        "decoded_norms": lambda: decoded_norms_triton(x, values, matrix, indices),
        "refit": lambda: pursue_triton(grams, candidates.float(), candidates, candidates.float(), k),
        "pursue": lambda: pursue_triton(grams, values, indices, values, k),
        "gathered_gradients": lambda: gathered_gradients_triton(x, matrix, indices, values, k, (0.5, 0.25)),
    }
    for dtype in (torch.float32, torch.bfloat16):
        block, row = empty(n_rows, n_components, dtype=dtype), empty(n_rows, n_features, dtype=dtype)
        name = str(dtype).removeprefix("torch.")
        calls |= {
            f"select_{name}": lambda block=block: select_triton(block, bias, k + 8, k + 8),
            f"spread_{name}": lambda block=block: spread_triton(block, bias, k, n_active, fired, block.dtype),
            f"cosine_gradients_{name}": lambda row=row: cosine_gradients_triton(x, row, row, (0.5, 0.25)),
            f"write_slopes_{name}": lambda block=block: write_slopes_triton(indices, block, block, k, block),
        }
    return calls


def main(arguments: list[str] | None = None) -> None:
    """Run the check from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n-rows", type=int, default=100_000)
    parser.add_argument("--n-features", type=int, default=768)
    parser.add_argument("--n-components", type=int, default=4096)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--capability", type=int, default=90, help="compute capability, 90 for an H100")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    target = GPUTarget("cuda", options.capability, 32)
    results: dict[str, Any] = {}

    for name, call in launches(options.n_rows, options.n_features, options.n_components, options.k).items():

        def run(
            kernel: JITFunction, *launched: Any, grid: Any, warmup: bool, name: str = name, **keywords: Any
        ) -> None:
            n_warps = keywords["num_warps"]
            code = compile_launch(kernel, launched, keywords, target).asm["cubin"]
            results[name] = {"kernel": kernel.__name__, "n_warps": n_warps, "code_bytes": len(code), **resources(code)}

        with patch.object(JITFunction, "run", run):
            call()
        print(name, results[name])
    if options.out is not None:
        settings = {key: value for key, value in vars(options).items() if key != "out"}
        record = environment() | {"triton": triton.__version__}
        write_json(options.out, {"environment": record, "settings": settings, "results": results})


if __name__ == "__main__":
    main()
