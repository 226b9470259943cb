"""The kernels compile for a GPU that is not here, within its registers: Triton needs no device for that."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from wim_kernel.engines.local.attention import triton_kernels as kernels

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not kernels.AVAILABLE, reason="Triton is not installed"),
    pytest.mark.skipif(
        sys.platform != "linux", reason="Triton's compiler for CUDA comes with its Linux builds"
    ),
]

# Run where kernels are not interpreted: (rows, queries, heads, key heads, size, type, window, past, elsewhere, runs).
CASES = [
    (1, 4096, 32, 8, 128, "bf16", False, False, True, 1),
    (8, 128, 32, 8, 128, "bf16", False, False, False, 1),
    (8, 1, 32, 8, 128, "bf16", False, True, False, 16),
    (32, 1, 64, 8, 128, "fp16", True, True, False, 8),
    (2, 40, 8, 8, 80, "bf16", True, False, False, 2),
    (8, 1, 8, 2, 64, "fp32", False, True, False, 4),
]
SCRIPT = """
import json, re, subprocess, sys, tempfile
from pathlib import Path
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from wim_kernel.engines.local.attention import triton_kernels as kernels, triton_launch as host
from wim_kernel.engines.local.model import fused_ops as small_kernels

CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"

def compiled(kernel, types, constants, warps, stages):
    names = kernel.arg_names
    signature = {name: "constexpr" if name in constants else types.get(name, "i32") for name in names}
    wide = [n for n, kind in signature.items() if kind.startswith("*") or n[1:2] == "_"]
    attributes = {(names.index(name),): [["tt.divisibility", 16]] for name in wide}
    places = {(names.index(name),): value for name, value in constants.items()}
    source = ASTSource(fn=kernel, signature=signature, constexprs=places, attrs=attributes)
    target = GPUTarget("cuda", 90, 32)
    made = triton.compile(source, target=target, options={"num_warps": warps, "num_stages": stages})
    ptx = made.asm["ptx"]
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(made.asm["cubin"])
        file.flush()
        said = subprocess.run([CUOBJDUMP, "-res-usage", file.name], capture_output=True, text=True, check=True)
    stack = int(re.search(r"STACK:(\\d+)", said.stdout + said.stderr)[1])
    return {"shared": made.metadata.shared, "wgmma": "wgmma" in ptx, "mma": "mma.sync" in ptx, "stack": stack}

found, apart = [], []
for rows, queries, heads, key_heads, size, kind, window, past, outer, runs in json.loads(sys.argv[1]):
    shape = host.Shape(rows, queries, key_heads, heads // key_heads, size, 4 if kind == "fp32" else 2)
    width = host.power(size)
    sizes = dict(GROUPS=heads // key_heads, SIZE=size, VALUE_SIZE=size, BLOCK_D=width, BLOCK_DV=width,
                 HAS_WINDOW=window, HAS_CAP=False)
    types = {name: "*" + kind for name in ("query", "key", "value", "sinks", "lib_prefix", "lib_causal", "out")}
    types |= {"table": "*i64", "state": "*i32", "bounds": "*i32", "part": "*fp32",
              "part_lse": "*fp32", "lib_prefix_lse": "*fp32", "lib_causal_lse": "*fp32", "scale": "fp32",
              "softcap": "fp32"}
    b = host.prefix_blocks(shape)
    constants = dict(sizes, BLOCK_R=b.queries, BLOCK_N=b.keys, BLOCK_PARTS=0, EARLY=True)
    found.append(compiled(kernels.prefix_part, types, constants, b.warps, b.stages))
    b = host.own_blocks(shape)
    constants = dict(sizes, BLOCK_R=b.queries, BLOCK_N=b.keys, SPLITS=runs, HAS_SINKS=True, HAS_PAST=past,
                     HAS_LIB_PREFIX=outer, STORES=not outer, BY_BLOCK=False, EARLY=True)
    found.append(compiled(kernels.own_part, types, constants, b.warps, b.stages))
    if queries == 1:  # each row on a prefix of its own
        b = host.prefix_blocks(host.replace(shape, rows=1))
        constants = dict(sizes, BLOCK_R=b.queries, BLOCK_N=b.keys, BLOCK_PARTS=1, EARLY=True)
        apart.append(compiled(kernels.prefix_part, types, constants, b.warps, b.stages))
        b = host.own_blocks(shape)
        constants = dict(sizes, BLOCK_R=b.queries, BLOCK_N=b.keys, SPLITS=1, HAS_SINKS=False, HAS_PAST=True,
                         HAS_LIB_PREFIX=False, STORES=True, BY_BLOCK=True, EARLY=True)
        apart.append(compiled(kernels.own_part, types, constants, b.warps, b.stages))
types["causal_queries"] = types["heads"] = "i32"
parts = dict(VALUE_SIZE=128, BLOCK_DV=128, ROWS=16, SPLITS=1, HAS_SINKS=True, HAS_LIB_PREFIX=True)
found.append(compiled(kernels.merged, types, parts, 4, 3))
norm = dict(BLOCK=4096, WIDTH=4096, ROWS=1, AROUND_ONE=False)
three = {"source": "*bf16", "weight": "*bf16", "out": "*bf16", "eps": "fp32"}
found.append(compiled(small_kernels._rms_norm, three, norm, 8, 3))
six = {name: "*bf16" for name in ("query", "key", "to_query", "to_key", "cos", "sin")}
found.append(compiled(small_kernels._rotate, six, dict(HALF=64, BLOCK=64, HEADS=32, KEY_HEADS=8), 4, 3))
found.append(compiled(small_kernels._gate, {name: "*bf16" for name in ("gate", "up", "out")}, dict(BLOCK=1024), 4, 3))
print(json.dumps([found, apart]))
"""


def test_kernels_compile_for_hopper(tmp_path):
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(CASES)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found, apart = json.loads(done.stdout)
    assert len(found) == 2 * len(CASES) + 4
    assert [kernel["mma"] for kernel in apart] == [True] * 4 + [False] * 2
    assert all(kernel["stack"] <= 16 for kernel in apart)
    assert all(kernel["shared"] <= 227 * 1024 for kernel in [*found, *apart])
    prefix, own = found[0], found[1]
    assert prefix["wgmma"]  # a chunk is read by the chip's own matrix instructions
    assert own["wgmma"]
    assert found[4]["mma"]  # few queries are too few for them
    assert not any(kernel["wgmma"] or kernel["mma"] for kernel in found[10:12])  # full precision
    assert [kernel["stack"] for kernel in found[:8]] == [0] * 8  # registers suffice: none is spilled
    assert all(
        kernel["stack"] <= 128 for kernel in found
    )  # a few, with windows, sinks and padded heads at once
