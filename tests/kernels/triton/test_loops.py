"""What is told of a compiled kernel's main loop, on code written out here and on kernels whose loops are known."""

import pytest

pytest.importorskip("triton", reason="Triton is not installed")

from seqconv.kernels.triton import census, loops

CODE = """
        /*0000*/                   LDC R1, c[0x0][0x28] ;                  /* 0x00000a00ff017b82 */
        /*0010*/                   FFMA R2, R3, R4, R2 ;                   /* 0x00000a00ff017b82 */
        /*0020*/                   LDGSTS.E.BYPASS.128 [R14], desc[UR16][R24.64], !P1 ;  /* 0x00000a00ff017b82 */
        /*0030*/                   LDG.E.U16 R5, desc[UR16][R24.64] ;      /* 0x00000a00ff017b82 */
        /*0040*/                   DEPBAR.LE SB0, {wait} ;                 /* 0x00000a00ff017b82 */
        /*0050*/                   HGMMA.64x32x16.F32.BF16 R24, R112, gdesc[UR44], R24 ;  /* 0x00000a00ff017b82 */
        /*0058*/                   STL [R1+0x8], R2 ;                      /* 0x00000a00ff017b82 */
        /*0060*/                   HMMA.16816.F32.BF16 R24, R112, R44, R24 ;  /* 0x00000a00ff017b82 */
        /*0070*/                   FFMA.FTZ R2, R3, R4, R2 ;               /* 0x00000a00ff017b82 */
        /*0080*/              @!P0 BRA 0x20 ;                              /* 0x00000a00ff017b82 */
        /*0090*/               @P1 BRA 0x10 ;                              /* 0x00000a00ff017b82 */
        /*00a0*/                   IADD3 R1, R1, 0x1, RZ ;                 /* 0x00000a00ff017b82 */
        /*00b0*/               @P2 BRA 0xa0 ;                              /* 0x00000a00ff017b82 */
        /*00c0*/                   BRA 0xc0 ;                              /* 0x00000a00ff017b82 */
"""


@pytest.mark.parametrize(("wait", "waits"), [("0x0", True), ("0x12", False)])
def test_the_innermost_loop_with_the_most_products_is_the_main_one(wait, waits):
    loop = loops.main_loop(loops.instructions(CODE.format(wait=wait)), warps=8)
    by_warps = 8 * (16 * 8 * 16 + 32)
    assert loop == loops.Loop(8, 0, 2 * 64 * 32 * 16 + by_warps, {16: 1, 2: 1}, 1, waits)
    assert loop.clocks(8, 2048) == (16, loop.multiply_adds / 2048)


def test_integers_take_two_clocks():
    code = loops.instructions(CODE.format(wait="0x0").replace("LDG.E.U16", "ISETP.GE.AND"))
    code = [
        one._replace(operation="IMAD.WIDE") if one.operation.startswith(("LD", "STL", "DEP")) else one for one in code
    ]
    loop = loops.main_loop(code, warps=4)
    assert (loop.instructions, loop.halved) == (8, 4)
    assert loop.clocks(4, 1)[0] == 8
    assert loop._replace(halved=5).clocks(4, 1)[0] == 10


def test_a_kernel_without_products_has_no_main_loop():
    code = [one for one in loops.instructions(CODE.format(wait="0x0")) if "MMA" not in one.operation]
    assert loops.main_loop([one for one in code if "FFMA" not in one.operation], warps=4) is None


def test_times_are_those_of_what_takes_longest():
    loop, machine = loops.Loop(100, 10, 2**16, {}, 0, False), loops.H100
    taken = census.Figures(registers=128, stack=0, shared=100 * 1024, matrix="wgmma")
    by_products = loops.times(loop, "16", 4, taken, 2**30, 2**31, 0, machine)
    assert by_products.programs == 2  # by shared memory; registers would allow four
    assert by_products.issue == pytest.approx(2 * 100)
    assert by_products.products == pytest.approx(2 * 2**16 / 2048)
    speed = machine.processors * machine.clock
    assert by_products.estimate == pytest.approx(2**31 / 2**16 * 100 / speed)  # 100 clocks to issue, 32 to multiply
    assert by_products.floor == pytest.approx(2**30 / 2048 / speed)
    by_bytes = loops.times(loop, "16", 4, taken, 1, 1, 3e9, machine)
    assert by_bytes.estimate == by_bytes.floor == pytest.approx(1e-3)


def cost(name, kind, kernel):
    layer = census.LAYERS[name]
    found = census.launches(layer, kind, "sm_90", census.SAMPLES, census.WINDOWS.get(name, 64))
    return census.cost(layer, next(one for one in found if one.name == kernel), kind, "sm_90")


@pytest.mark.parametrize("kind", ["16", "tf32"])
def test_weight_gradients_are_near_their_floor(kind):
    """At most 1.5 times by this model; their input arrives in whole vectors."""
    taken = cost("imdb1", kind, "phase_weight_gradient_kernel")
    assert taken.times.estimate <= 1.5 * taken.times.floor
    assert taken.loop.loads[16] >= 20


@pytest.mark.parametrize(("name", "kind", "kernel"), [
    ("imdb2", "tf32", "global_weight_gradient_kernel"),
    ("wide windows", "tf32", "weight_gradient_kernel"),
    ("imdb1", "ieee", "weight_gradient_kernel"),
    ("few, global", "16", "sums_kernel"),
    ("few, global", "tf32", "sums_kernel"),
])  # fmt: skip
def test_rows_of_whole_vectors_are_loaded_as_such(name, kind, kernel):
    """But for a gradient's numbers, and argmax; copies of rows to be turned over would be of 4 bytes each."""
    loads = cost(name, kind, kernel).loop.loads
    assert loads[16] >= 4
    assert sum(count for width, count in loads.items() if width < 8) <= 2


def test_prints_a_table_of_loops(capsys):
    assert census.main(["--loops", "--layers", "jena1", "--kinds", "16"]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split()[:5] == ["layer", "kind", "kernel", "blocks", "loop"]
    assert [line.split()[2] for line in lines] == [
        "forward_windows_kernel",
        "phase_weight_gradient_kernel",
        "phase_input_gradient_kernel",
    ]
    assert all(float(line.split()[-1]) >= 1 for line in lines)
