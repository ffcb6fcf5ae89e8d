"""Numbers that are no rows of a table: the check that stops a device."""

from __future__ import annotations

import pytest
import torch

from seqconv.kernels.triton import census

PROGRAM = """
import torch
from seqconv import functional
from seqconv.kernels.geometry import Convolution, Pool
from seqconv.kernels.source import Tokens, Windows
from seqconv.kernels.triton import conv_pool
table, weight = torch.zeros(50, 4, device="cuda"), torch.zeros(8, 4, 3, device="cuda")
tokens = torch.full((3, 2000), 49, device="cuda")
starts = torch.full((2000,), 40, device="cuda")
geometry = Convolution(), Pool(2, 2)

def public():
    functional.embedding_conv1d_relu_global_max_pool1d(tokens, table, weight, backend="triton")

def tokens_of(plan):
    conv_pool.forward(Tokens(tokens, table), weight, None, *geometry, want_argmax=False, plan=plan)

def direct():
    tokens_of("direct")

def folded():
    tokens_of("folded")

def windows():
    conv_pool.forward(Windows(table, starts, 10, 1), weight, None, *geometry, want_argmax=False, plan="direct")

{call}()
torch.cuda.synchronize()
print("fine so far", flush=True)
tokens[2, 1999] = starts[1999] = {number}
{call}()
torch.cuda.synchronize()
"""


@pytest.mark.parametrize("target", ["sm_80", "sm_90", "gfx942"])
@pytest.mark.parametrize("name", ["imdb1, tokens", "imdb1, folded", "jena1, windows"])
def test_the_check_comes_first_and_is_compiled(name, target):
    (check, *_) = census.launches(census.LAYERS[name], "16", target)
    assert check.name == "check_index_kernel"
    code = census.compiled(check, target).asm["llir"]
    assert "must be rows of the table or series" in code
    assert "assertfail" in code or "llvm.trap" in code or "abort" in code


def test_every_number_is_checked():
    """As many programs as there are blocks of numbers, through the index's own strides."""
    layer = census.LAYERS["imdb1, tokens"]
    (check, *_) = census.launches(layer, "16", "sm_90", samples=1000, windows=9)
    samples, length = check.arguments["index"].shape
    numbers = samples * length
    assert samples == 1000
    assert check.arguments["numbers"] == numbers
    assert check.arguments["length"] == length
    assert check.grid == (-(-numbers // check.arguments["BLOCK"]),)
    assert check.arguments["count"] == 10000


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("call", "number"), [("public", 50), ("public", -1), ("direct", 2**40), ("folded", -(2**40)), ("windows", 41)]
)
def test_a_number_out_of_range_stops_the_device(apart, call, number):
    """A token, or the start of a window that leaves the series; the last of several blocks has it."""
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    done = apart(PROGRAM.format(call=call, number=number))
    assert "fine so far" in done.stdout, done.stderr
    assert done.returncode != 0
    assert "tokens or starts must be rows of the table or series" in done.stdout + done.stderr
