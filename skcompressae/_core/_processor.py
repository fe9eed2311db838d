"""What the processor at hand can do that decides which of two ways to the same result is the faster one."""

from __future__ import annotations

import llvmlite.binding as llvm
from numba.core import config

__all__ = ["HAS_AVX2", "MULTIPLIES_BFLOAT16", "MULTIPLIES_INT8", "MULTIPLIES_INT16"]

# LLVM's names of the instruction sets of x86 that multiply bfloat16, without and with matrix tiles. Of an Arm processor
# LLVM does not tell everywhere, so there products of rounded factors run in float32.
_BFLOAT16_FEATURES = ("avx512bf16", "amx-bf16")

_features = llvm.get_host_cpu_features()

# Without such instructions, torch's bfloat16 product takes several times as long as one in float32.
MULTIPLIES_BFLOAT16 = any(_features.get(name, False) for name in _BFLOAT16_FEATURES)
# Four 8-bit products, and their sum, for each float32 lane.
MULTIPLIES_INT8 = bool(_features.get("avx512vnni", False))
# What Numba compiles for: where it is told to use less than the host has, a kernel of AVX2 would end the process.
HAS_AVX2 = bool(_features.get("avx2", False)) and config.CPU_NAME in (None, "host") and config.CPU_FEATURES is None
# Two 16-bit products, and their sum, for each float32 lane. With AVX-512, whose lanes are twice as many, our own kernel
# for AVX2 would be no faster than float32.
MULTIPLIES_INT16 = HAS_AVX2 and not _features.get("avx512f", False)
