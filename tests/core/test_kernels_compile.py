"""Triton's compiler turns every kernel into machine code for the oldest and the newest supported devices, without one
at hand: what the interpreter lets pass, a compiler may not, and a tile may ask for more memory than a device has."""

import sys

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Triton is made for Linux")

LEAST_SHARED = 99 * 2**10
"""Bytes of shared memory a block may have on the smallest supported devices, those of capability 8.6 and 8.9."""

CAPABILITIES = (80, 90)

GEMM = {"EVEN": True, "BIASED": True}
STATISTICS = {"SHIFTED": True, "SPLIT": 512, "BLOCK_R": 16, "BLOCK_C": 128}
KERNELS = {
    "geglu_triton.geglu_kernel": ("x weight bias out", GEMM | {"BAND": 8, "JOINT": False}),
    "frame_conv_triton.frame_conv_kernel": ("x weight bias out", GEMM),
    "split_norm_triton.moments_kernel": (
        "x owed total means: variances:",
        {"OWED": True, "ONE_RUN": False, "SPLIT": 512, "BLOCK_R": 64, "BLOCK_C": 64},
    ),
    "split_norm_triton.owed_sum_kernel": ("x change owed out", {"BLOCK_R": 32, "BLOCK_C": 128}),
    "split_norm_triton.merge_kernel": (
        "means: variances: weight bias scale_out: shift_out:",
        {"WIDTH": 4, "BLOCK_S": 512, "BLOCK_W": 4},
    ),
    "split_norm_triton.affine_silu_kernel": ("x gains: offsets: out", {"BLOCK_R": 32, "BLOCK_C": 128}),
    "fp8_linear_triton.rows_kernel": ("x out! scales:", {"BLOCK_I": 8192}),
    "fp8_linear_triton.product_kernel": ("x! x_scales: weight! w_scales: bias out", GEMM),
    "linear_add_triton.linear_add_kernel": ("residual x weight bias out", {"EVEN": True}),
    "blend_triton.blend_kernel": ("images change share owed out", {"BLOCK": 2048}),
    "group_norm_triton.partial_kernel": ("x shift means: squares:", STATISTICS),
    "group_norm_triton.merge_kernel": (
        "means: squares: mean_out: scale_out:",
        {"WIDTH": 10, "SPLIT": 512, "BLOCK_S": 128, "BLOCK_W": 16},
    ),
    "group_norm_triton.apply_kernel": (
        "x shift means: scales: weight bias out",
        {"WIDTH": 10, "SILU": True, "SHIFTED": True, "BLOCK_R": 32, "BLOCK_C": 128},
    ),
    "layer_norm_triton.add_layer_norm_kernel": (
        "tokens change embedding weight bias total_out normed_out",
        {"CHANGED": True, "EMBEDDED": True, "BLOCK_R": 8, "BLOCK_C": 512},
    ),
    "frame_attention_triton.frame_attention_kernel": ("q k v out", {"WIDTH": 64, "BLOCK_S": 4, "BLOCK_T": 32}),
}
"""Pointers, in float32 those with a colon and in eight bits those with a mark, and constants as at the finest level of
the released models."""

OLDEST_FOR_EIGHT_BITS = 89


def compiled(name, capability, dtype="bf16", tile_name=None, **more):
    """As launched on a device: pointers and sizes are multiples of 16. The dtype is Triton's word, the tile by default
    the first one, and `more` are constants of it."""
    import importlib

    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    module_name, function = name.split(".")
    module = importlib.import_module(f"svd_core.kernels.{module_name}")
    kernel = getattr(module, function)
    pointers, constants = KERNELS[name]
    words = {":": "*fp32", "!": "*fp8e4nv"}
    kinds = {word.rstrip(":!"): words.get(word[-1], f"*{dtype}") for word in pointers.split()}
    options = {"num_warps": 4}
    if (tiles := getattr(module, "TILES", None)) and "BLOCK_M" in kernel.arg_names:
        tile = tiles[tile_name or next(iter(tiles))].keywords
        constants = (
            constants
            | more
            | {"BLOCK_M": tile["block_m"], "BLOCK_N": tile["block_n"], "BLOCK_K": getattr(module, "BLOCK_K", 64)}
        )
        options = {"num_warps": tile["warps"], "num_stages": tile["stages"]}
    kinds |= dict.fromkeys(("eps", "scale"), "fp32") | dict.fromkeys(constants, "constexpr")
    signature = {argument: kinds.get(argument, "i32") for argument in kernel.arg_names}
    even = {
        (place,): [["tt.divisibility", 16]]
        for place, kind in enumerate(signature.values())
        if kind not in ("fp32", "constexpr")
    }
    source = ASTSource(kernel, signature, constants, even)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("name", KERNELS)
def test_a_kernel_compiles_and_fits(name, capability, tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    result = compiled(name, max(capability, OLDEST_FOR_EIGHT_BITS) if "fp8" in name else capability)
    assert len(result.asm["cubin"]) > 0
    assert result.metadata.shared <= LEAST_SHARED


@pytest.mark.parametrize(("capability", "instruction"), [(80, "mma.sync"), (90, "wgmma.mma_async")])
def test_products_run_on_tensor_cores(capability, instruction, tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    assert instruction in compiled("frame_conv_triton.frame_conv_kernel", capability).asm["ptx"]


@pytest.mark.parametrize(("capability", "instruction"), [(89, "mma.sync"), (90, "wgmma.mma_async")])
def test_products_of_eight_bits_run_on_tensor_cores(capability, instruction, tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    code = compiled("fp8_linear_triton.product_kernel", capability).asm["ptx"]
    assert any(instruction in line and "e4m3.e4m3" in line for line in code.splitlines())


NEWEST_SHARED = 227 * 2**10
"""Bytes of shared memory a block may have on devices of capability 9."""


def test_values_and_gates_in_one_accumulator_part_without_a_move(tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    apart, joint = (
        compiled("geglu_triton.geglu_kernel", 90, tile_name=name, JOINT=name != "128x128")
        for name in ("128x128", "128x128, joint")
    )
    moves = [result.asm["ttgir"].count("convert_layout") for result in (apart, joint)]
    assert moves[0] == moves[1]
    assert "wgmma.mma_async.sync.aligned.m64n256k16" in joint.asm["ptx"]
    assert joint.metadata.shared <= NEWEST_SHARED
