"""GRU and LSTM over all steps of a tile of sequences on the device, and back.

A program has ``M`` sequences in one direction, from their first step to their last; programs share nothing. In
:func:`forward_kernel` and :func:`backward_kernel` the hidden units are one block of ``O``: state and recurrent weights
stay where the compiler keeps them for the whole loop, and what a step reads is asked for one step ahead. In
:func:`wide_forward_kernel` and :func:`wide_backward_kernel` they are several blocks: weights are read anew at every
step, ``R`` numbers of the reduction at a time, and states pass from step to step through memory of the program's own.

Gates are those of :mod:`seqconv.kernels.reference.recurrent`, in its order. ``saved`` is (D, L, N, S, H): what a GRU
keeps of a step is r, z, n and, where it resets behind the product, that product of n with its bias; an LSTM keeps
the cell state before the step, and i, f, g, o or nothing else. Gradients in front of the gates' functions,
``dgates``, are (D, L, N, S, H), too: those of an LSTM or of a GRU that resets in front of the product, in order; of
one that resets behind it n, r, z and n's behind the product, so that those of the input lie together and those of the
state do.

Blocks are (M, O), arithmetic is float32. Lanes that are no hidden unit hold zeros at every step, whatever the others
hold. Prefixes are those of :mod:`.conv_pool`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .convolution import below, factor

__all__ = ["backward_kernel", "forward_kernel", "wide_backward_kernel", "wide_forward_kernel"]

SIZES = ["steps", "samples"]
# tanh(x) = x + x^3 p(x^2) below so much: a least maximum of the relative error, 1e-9, by Lawson's weights.
SMALL = tl.constexpr(0.55)
P0, P1, P2 = tl.constexpr(-0.33333318), tl.constexpr(0.13332586), tl.constexpr(-0.05385231)
P3, P4 = tl.constexpr(0.02107168), tl.constexpr(-0.00627424)


@triton.jit
def sigmoid(b: tl.tensor) -> tl.tensor:
    """Return 1 / (1 + exp(-x))."""
    return 1.0 / (1.0 + tl.exp(-b))


@triton.jit
def tanh(b: tl.tensor) -> tl.tensor:
    """Return the hyperbolic tangent, exact to some roundings for small numbers, too."""
    b_square = b * b
    b_small = b + b * b_square * (P0 + b_square * (P1 + b_square * (P2 + b_square * (P3 + b_square * P4))))
    b_e = tl.exp(-2.0 * tl.abs(b))
    b_large = (1.0 - b_e) / (1.0 + b_e)
    return tl.where(tl.abs(b) < SMALL, b_small, tl.where(b < 0, -b_large, b_large))


@triton.jit
def sequences(
    lengths: tl.tensor,  # (N,), or None
    samples: tl.tensor,
    steps: tl.tensor,
    D: tl.constexpr,
    M: tl.constexpr,
) -> tl.tensor:
    """Return a program's direction and first sequence, which there are, their lengths, and the greatest of these."""
    i_d = tl.program_id(0) % D
    i_n = (tl.program_id(0) // D).to(tl.int64) * M
    b_n = i_n + tl.arange(0, M)
    m_n = b_n < samples
    b_length = tl.where(m_n, steps, 0)
    if lengths is not None:
        b_length = tl.load(lengths + b_n, mask=m_n, other=0).to(tl.int32)
    return i_d, i_n, m_n, b_length, tl.max(b_length, axis=0)


@triton.jit
def step_of(i: tl.tensor, i_d: tl.tensor, longest: tl.tensor) -> tl.tensor:
    """Return the ``i``-th step of a direction, the nearest one where there is none."""
    i_last = tl.maximum(longest - 1, 0)
    i = tl.maximum(tl.minimum(i, i_last), 0)
    return tl.where(i_d == 1, i_last - i, i)


@triton.jit
def units(i_first: tl.tensor, H: tl.constexpr, O: tl.constexpr) -> tl.tensor:  # noqa: E741
    """Return a block of hidden units, and which of them there are."""
    b_o = i_first + tl.arange(0, O)
    return b_o, below(b_o, H, O)


@triton.jit
def rows(PITCH: tl.constexpr, b_o: tl.tensor, M: tl.constexpr) -> tl.tensor:
    """Return where hidden units of a tile's sequences lie, ``PITCH`` numbers from sequence to sequence."""
    return tl.arange(0, M)[:, None] * PITCH + b_o[None, :]


@triton.jit
def load_float(p: tl.tensor, m: tl.tensor) -> tl.tensor:
    """Return numbers as float32, 0 where there are none."""
    return tl.load(p, mask=m, other=0.0).to(tl.float32)


@triton.jit
def store_as(p: tl.tensor, b: tl.tensor, m: tl.tensor) -> tl.tensor:
    """Write numbers in memory's dtype."""
    tl.store(p, b.to(p.dtype.element_ty), mask=m)


@triton.jit
def bias_of(
    bias: tl.tensor,  # (D, G, H), or None
    i_d: tl.tensor,
    g: tl.constexpr,
    b_o: tl.tensor,
    m_o: tl.tensor,
    CELL: tl.constexpr,
    O: tl.constexpr,  # noqa: E741
) -> tl.tensor:
    """Return a gate's bias, (1, O)."""
    b = tl.zeros((O,), tl.float32)
    if bias is not None:
        b = load_float(bias + (i_d * CELL.gates + g) * CELL.H + b_o, m_o)
    return b[None, :]


@triton.jit
def biases_of(
    bias_ih: tl.tensor,
    bias_hh: tl.tensor,
    i_d: tl.tensor,
    b_o: tl.tensor,
    m_o: tl.tensor,
    CELL: tl.constexpr,
    O: tl.constexpr,  # noqa: E741
) -> tl.tensor:
    """Return what is added to the input's products, of each gate, then what to that of the state in n."""
    b_biases: tl.tuple = ()
    for g in tl.static_range(CELL.gates):
        b = bias_of(bias_ih, i_d, g, b_o, m_o, CELL, O)
        if CELL.lstm or g < 2 or not CELL.reset_after:
            b += bias_of(bias_hh, i_d, g, b_o, m_o, CELL, O)
        b_biases = b_biases + (b,)  # noqa: RUF005
    return b_biases + (bias_of(bias_hh, i_d, CELL.gates - 1, b_o, m_o, CELL, O),)  # noqa: RUF005


@triton.jit
def sums_of(b_x: tl.tensor, b_biases: tl.tensor, CELL: tl.constexpr, M: tl.constexpr, O: tl.constexpr) -> tl.tensor:  # noqa: E741
    """Return what the products of the state are added to that come first: all, or those of r and z."""
    b_sums = b_x
    if not CELL.lstm:
        b_sums = (b_x[0], b_x[1])
        if CELL.reset_after:
            b_sums = b_sums + (tl.zeros((M, O), tl.float32) + b_biases[3],)  # noqa: RUF005
    return b_sums


@triton.jit
def load_input(
    x: tl.tensor,  # (L, N, D, G, H), or (G, L, N, D, H) if CELL.apart
    b_biases: tl.tensor,
    i_row: tl.tensor,  # of (L, N)
    numbers: tl.tensor,  # L * N
    i_d: tl.tensor,
    b_o: tl.tensor,
    m: tl.tensor,
    CELL: tl.constexpr,
    M: tl.constexpr,
) -> tl.tensor:
    """Return the input's products at a step, of each gate, with their biases."""
    PITCH: tl.constexpr = CELL.D * CELL.H if CELL.apart else CELL.D * CELL.gates * CELL.H
    p_x = x + i_row * PITCH + i_d * (CELL.H if CELL.apart else CELL.gates * CELL.H)
    b_at = rows(PITCH, b_o, M)
    b_x: tl.tuple = ()
    for g in tl.static_range(CELL.gates):
        p_gate = p_x + (g * numbers * PITCH if CELL.apart else g * CELL.H)
        b_x = b_x + (load_float(p_gate + b_at, m) + b_biases[g],)  # noqa: RUF005
    return b_x


@triton.jit
def load_masks(
    masks: tl.tensor,  # (D, T, CELL.masks, N, H)
    i_t: tl.tensor,
    i_n: tl.tensor,
    i_d: tl.tensor,
    steps: tl.tensor,
    samples: tl.tensor,
    b_o: tl.tensor,
    m: tl.tensor,
    CELL: tl.constexpr,
    M: tl.constexpr,
) -> tl.tensor:
    """Return what the state is multiplied by at a step, one for all gates or one for each."""
    i_mask = i_d * steps.to(tl.int64) + i_t if CELL.each_step else i_d.to(tl.int64)
    b_masks: tl.tuple = ()
    for g in tl.static_range(CELL.masks):
        p = masks + ((i_mask * CELL.masks + g) * samples + i_n) * CELL.H + rows(CELL.H, b_o, M)
        b_masks = b_masks + (load_float(p, m),)  # noqa: RUF005
    return b_masks


@triton.jit
def masked(b: tl.tensor, b_masks: tl.tensor, g: tl.constexpr, CELL: tl.constexpr) -> tl.tensor:
    """Return a state as a gate sees it, or a gate's gradient as the state does."""
    if CELL.masks > 0:
        b = b * b_masks[g if CELL.masks > 1 else 0]
    return b


@triton.jit
def load_weight(
    weight: tl.tensor,  # (D, G, H, H), the rows summed over
    i_d: tl.tensor,
    g: tl.constexpr,
    b_k: tl.tensor,
    m_k: tl.tensor,
    b_o: tl.tensor,
    m_o: tl.tensor,
    CELL: tl.constexpr,
    PRODUCTS: tl.constexpr,
) -> tl.tensor:
    """Return a gate's weights, ``(R, O)``."""
    p_w = weight + (i_d * CELL.gates + g) * CELL.H * CELL.H + b_k[:, None] * CELL.H + b_o[None, :]
    return operand(tl.load(p_w, mask=m_k[:, None] & m_o[None, :], other=0.0), PRODUCTS)


@triton.jit
def operand(b: tl.tensor, PRODUCTS: tl.constexpr) -> tl.tensor:
    """Return a product's factor; exact products are of float32 numbers."""
    if PRODUCTS.precision == "ieee":
        b = b.to(tl.float32)
    return factor(b, PRODUCTS.rounds)


@triton.jit
def product(b: tl.tensor, b_w: tl.tensor, acc: tl.tensor, weight: tl.tensor, PRODUCTS: tl.constexpr) -> tl.tensor:
    """Add a product with weights to ``acc``; one that is not exact is of numbers in their dtype."""
    if PRODUCTS.precision != "ieee":
        b = b.to(weight.dtype.element_ty)
    return tl.dot(operand(b, PRODUCTS), b_w, acc, input_precision=PRODUCTS.precision)


@triton.jit
def lstm_step(b_i: tl.tensor, b_f: tl.tensor, b_g: tl.tensor, b_o: tl.tensor, b_c: tl.tensor) -> tl.tensor:
    """Return an LSTM's new states, h and c, and its gates."""
    b_i, b_f, b_g, b_o = sigmoid(b_i), sigmoid(b_f), tanh(b_g), sigmoid(b_o)
    b_c = b_f * b_c + b_i * b_g
    return b_o * tanh(b_c), b_c, b_i, b_f, b_g, b_o


@triton.jit
def lstm_gradients(
    b_i: tl.tensor, b_f: tl.tensor, b_g: tl.tensor, b_o: tl.tensor, b_c: tl.tensor, b_dh: tl.tensor, b_dc: tl.tensor
) -> tl.tensor:
    """Return the gradients of the cell state before a step and of i, f, g, o in front of their functions."""
    b_tanh = tanh(b_f * b_c + b_i * b_g)
    b_dc += b_dh * b_o * (1.0 - b_tanh * b_tanh)
    b_di = b_dc * b_g * b_i * (1.0 - b_i)
    b_df = b_dc * b_c * b_f * (1.0 - b_f)
    b_dg = b_dc * b_i * (1.0 - b_g * b_g)
    b_do = b_dh * b_tanh * b_o * (1.0 - b_o)
    return b_dc * b_f, b_di, b_df, b_dg, b_do


@triton.jit
def gru_gradients(b_z: tl.tensor, b_n: tl.tensor, b_h: tl.tensor, b_dh: tl.tensor) -> tl.tensor:
    """Return the gradients of z and n in front of their functions, and what passes to the state before, past both."""
    return b_dh * (b_h - b_n) * b_z * (1.0 - b_z), b_dh * (1.0 - b_z) * (1.0 - b_n * b_n), b_dh * b_z


@triton.jit
def store_all(
    p: tl.tensor,  # (M, S, H) of a step
    b_numbers: tl.tensor,
    b_o: tl.tensor,
    m: tl.tensor,
    COUNT: tl.constexpr,
    SLOTS: tl.constexpr,  # S
    H: tl.constexpr,
    M: tl.constexpr,
) -> tl.tensor:
    """Write the first ``COUNT`` of these numbers of every sequence and hidden unit."""
    for s in tl.static_range(COUNT):
        store_as(p + s * H + rows(SLOTS * H, b_o, M), b_numbers[s], m)


@triton.jit
def clear_rest(
    p: tl.tensor, longest: tl.tensor, steps: tl.tensor, pitch: tl.tensor, b_at: tl.tensor, m: tl.tensor
) -> tl.tensor:
    """Write zeros to the steps behind a tile's longest sequence."""
    p += longest.to(tl.int64) * pitch
    for _ in range(longest, steps):
        tl.store(p + b_at, 0.0, mask=m)
        p += pitch


@triton.jit(do_not_specialize=SIZES)
def forward_kernel(
    x: tl.tensor,  # (L, N, D, G, H), or (G, L, N, D, H) if CELL.apart: the input's products
    weight: tl.tensor,  # (D, G, H, H), from inputs to outputs
    bias_ih: tl.tensor,  # (D, G, H), or None
    bias_hh: tl.tensor,
    masks: tl.tensor,  # (D, T, CELL.masks, N, H), or None
    lengths: tl.tensor,  # (N,), or None
    h0: tl.tensor,  # (D, N, H), and so are the three others
    c0: tl.tensor,  # or None, and last_c then, too
    output: tl.tensor,  # (L, N, D, H)
    last_h: tl.tensor,
    last_c: tl.tensor,
    saved: tl.tensor,  # (D, L, N, S, H), or None
    steps: tl.int32,  # L
    samples: tl.int64,  # N
    CELL: tl.constexpr,
    TILE: tl.constexpr,
    PRODUCTS: tl.constexpr,
) -> tl.tensor:
    """Run the cell over ``M`` sequences in one direction, weights and state kept."""
    M: tl.constexpr = TILE.M
    EARLY: tl.constexpr = CELL.gates if CELL.reset_after else 2
    PITCH: tl.constexpr = CELL.D * CELL.H
    i_d, i_n, m_n, b_length, longest = sequences(lengths, samples, steps, CELL.D, M)
    b_o, m_o = units(0, CELL.H, TILE.O)
    m = m_n[:, None] & m_o[None, :]
    b_biases = biases_of(bias_ih, bias_hh, i_d, b_o, m_o, CELL, TILE.O)
    weights: tl.tuple = ()
    for g in tl.static_range(CELL.gates):
        b_w = load_weight(weight, i_d, g, b_o, m_o, b_o, m_o, CELL, PRODUCTS)
        weights = weights + (b_w,)  # noqa: RUF005
    b_state = (i_d * samples + i_n) * CELL.H + rows(CELL.H, b_o, M)
    b_h = load_float(h0 + b_state, m)
    b_c = load_float(c0 + b_state, m) if CELL.lstm else b_h
    p_out = output + i_n * PITCH + i_d * CELL.H
    i_first = i_d * steps * samples + i_n
    i_t = step_of(0, i_d, longest)
    next_x = load_input(x, b_biases, i_t.to(tl.int64) * samples + i_n, steps * samples, i_d, b_o, m, CELL, M)
    next_masks = load_masks(masks, i_t, i_n, i_d, steps, samples, b_o, m, CELL, M)
    for i in range(longest):
        b_x, b_masks = next_x, next_masks
        i_row = i_t.to(tl.int64) * samples
        m_t = (i_t < b_length)[:, None] & m_o[None, :]
        i_t = step_of(i + 1, i_d, longest)
        next_x = load_input(x, b_biases, i_t.to(tl.int64) * samples + i_n, steps * samples, i_d, b_o, m, CELL, M)
        if CELL.each_step:
            next_masks = load_masks(masks, i_t, i_n, i_d, steps, samples, b_o, m, CELL, M)
        accs: tl.tuple = ()
        sums = sums_of(b_x, b_biases, CELL, M, TILE.O)
        for g in tl.static_range(EARLY):
            accs = accs + (product(masked(b_h, b_masks, g, CELL), weights[g], sums[g], weight, PRODUCTS),)  # noqa: RUF005
        if CELL.lstm:
            b_new, b_cell, b_i, b_f, b_g, b_gate = lstm_step(accs[0], accs[1], accs[2], accs[3], b_c)
            b_kept: tl.tuple = (b_c, b_i, b_f, b_g, b_gate)
            b_c = tl.where(m_t, b_cell, b_c)
        else:
            b_r, b_z = sigmoid(accs[0]), sigmoid(accs[1])
            if CELL.reset_after:
                b_g = tanh(b_x[2] + b_r * accs[2])
                b_kept = (b_r, b_z, b_g, accs[2])
            else:
                b_factor = tl.where(m_o[None, :], b_r * masked(b_h, b_masks, 2, CELL), 0.0)
                b_g = tanh(product(b_factor, weights[2], b_x[2], weight, PRODUCTS))
                b_kept = (b_r, b_z, b_g)
            b_new = b_g + b_z * (b_h - b_g)
        b_h = tl.where(m_t, b_new, b_h)
        store_as(p_out + i_row * PITCH + rows(PITCH, b_o, M), tl.where(m_t, b_new, 0.0), m)
        if saved is not None:
            p_saved = saved + (i_first + i_row) * (CELL.slots * CELL.H)
            store_all(p_saved, b_kept, b_o, m, CELL.slots, CELL.slots, CELL.H, M)
    clear_rest(p_out, longest, steps, samples * PITCH, rows(PITCH, b_o, M), m)
    if saved is not None and not CELL.reset_after:  # r, which is multiplied by gradients that are 0 there
        clear_rest(
            saved + i_first * (CELL.slots * CELL.H), longest, steps, samples * (CELL.slots * CELL.H),
            rows(CELL.slots * CELL.H, b_o, M), m,
        )  # fmt: skip
    store_as(last_h + b_state, b_h, m)
    if CELL.lstm:
        store_as(last_c + b_state, b_c, m)


@triton.jit
def load_step(
    saved: tl.tensor,  # (D, L, N, S, H)
    gradient: tl.tensor,  # (L, N, D, H), or None
    before: tl.tensor,  # (L, N, D, H), or None
    i_d: tl.tensor,
    i_t: tl.tensor,
    i_n: tl.tensor,
    steps: tl.tensor,
    samples: tl.tensor,
    b_o: tl.tensor,
    m: tl.tensor,
    CELL: tl.constexpr,
    M: tl.constexpr,
    O: tl.constexpr,  # noqa: E741
) -> tl.tensor:
    """Return what was kept of a step, the gradient of its output, and a GRU's state before it."""
    PITCH: tl.constexpr = CELL.D * CELL.H
    i_row = i_t.to(tl.int64) * samples + i_n
    p_saved = saved + (i_d * steps * samples + i_row) * (CELL.slots * CELL.H)
    b_kept: tl.tuple = ()
    for s in tl.static_range(CELL.slots):
        b_kept = b_kept + (load_float(p_saved + s * CELL.H + rows(CELL.slots * CELL.H, b_o, M), m),)  # noqa: RUF005
    at = i_row * PITCH + i_d * CELL.H
    b_up = tl.zeros((M, O), tl.float32)
    if gradient is not None:
        b_up = load_float(gradient + at + rows(PITCH, b_o, M), m)
    b_kept = b_kept + (b_up,)  # noqa: RUF005
    if not CELL.lstm:
        b_kept = b_kept + (load_float(before + at + rows(PITCH, b_o, M), m),)  # noqa: RUF005
    return b_kept


@triton.jit
def gradients_of(b_kept: tl.tensor, b_dh: tl.tensor, b_dc: tl.tensor, m_t: tl.tensor, CELL: tl.constexpr) -> tl.tensor:
    """Return the gradients of a step's gates, as many as are known, of the cell state, and of h past the products.

    Of a step behind a sequence's end they are zeros, and the states' stay as they are. Of a GRU that resets in front of
    the product r's is what it is to be multiplied by: that of the product's factor is not known yet.
    """
    zero = tl.zeros_like(b_dh)
    if CELL.lstm:
        b_c, b_i, b_f, b_g, b_o, b_up = b_kept
        b_cell, b_di, b_df, b_dg, b_do = lstm_gradients(b_i, b_f, b_g, b_o, b_c, b_dh + b_up, b_dc)
        b_dc, b_direct = tl.where(m_t, b_cell, b_dc), tl.where(m_t, zero, b_dh)
        found: tl.tuple = (tl.where(m_t, b_di, zero), tl.where(m_t, b_df, zero), tl.where(m_t, b_dg, zero))
        found = found + (tl.where(m_t, b_do, zero),)  # noqa: RUF005
    else:
        b_r, b_z, b_n = b_kept[0], b_kept[1], b_kept[2]
        b_up, b_h = b_kept[CELL.slots], b_kept[CELL.slots + 1]
        b_dz, b_dn, b_direct = gru_gradients(b_z, b_n, b_h, b_dh + b_up)
        b_dz, b_dn, b_direct = tl.where(m_t, b_dz, zero), tl.where(m_t, b_dn, zero), tl.where(m_t, b_direct, b_dh)
        b_dr = tl.where(m_t, b_r * (1.0 - b_r), zero)
        if CELL.reset_after:
            found = (b_dn, tl.where(m_t, b_dn * b_kept[3] * b_dr, zero), b_dz, tl.where(m_t, b_dn * b_r, zero))
        else:
            found = (b_dr, b_dz, b_dn)
    return found + (b_dc, b_direct)  # noqa: RUF005


@triton.jit
def before_reset(
    b_factor: tl.tensor, b_r: tl.tensor, b_h: tl.tensor, b_masks: tl.tensor, CELL: tl.constexpr
) -> tl.tensor:
    """Return the gradients of r and of the state, from that of their product, in a GRU that resets in front of n's."""
    return b_factor * masked(b_h, b_masks, 2, CELL), masked(b_factor * b_r, b_masks, 2, CELL)


@triton.jit
def joined(
    b_direct: tl.tensor, accs: tl.tensor, b_masks: tl.tensor, COUNT: tl.constexpr, CELL: tl.constexpr
) -> tl.tensor:
    """Return the state's gradient: what passes the products, and their sums, one or one for each gate."""
    if CELL.masks < 2:
        b_direct += masked(accs[0], b_masks, 0, CELL)
    else:
        for g in tl.static_range(COUNT):
            b_direct += accs[g] * b_masks[g]
    return b_direct


@triton.jit(do_not_specialize=SIZES)
def backward_kernel(
    gradient: tl.tensor,  # (L, N, D, H), or None
    dlast_h: tl.tensor,  # (D, N, H), or None, and so are the three others
    dlast_c: tl.tensor,
    saved: tl.tensor,  # (D, L, N, S, H)
    before: tl.tensor,  # (L, N, D, H): a GRU's states before the steps, or None
    weight: tl.tensor,  # (D, G, H, H), from outputs to inputs
    masks: tl.tensor,  # (D, T, CELL.masks, N, H), or None
    lengths: tl.tensor,  # (N,), or None
    dgates: tl.tensor,  # (D, L, N, CELL.gradients, H)
    dh0: tl.tensor,
    dc0: tl.tensor,
    steps: tl.int32,  # L
    samples: tl.int64,  # N
    CELL: tl.constexpr,
    TILE: tl.constexpr,
    PRODUCTS: tl.constexpr,
) -> tl.tensor:
    """Go back over ``M`` sequences in one direction, weights and the state's gradient kept."""
    M: tl.constexpr = TILE.M
    O: tl.constexpr = TILE.O  # noqa: E741
    FIRST: tl.constexpr = CELL.gradients - CELL.gates
    COUNT: tl.constexpr = CELL.gates if CELL.reset_after else 2
    i_d, i_n, m_n, b_length, longest = sequences(lengths, samples, steps, CELL.D, M)
    b_o, m_o = units(0, CELL.H, O)
    m = m_n[:, None] & m_o[None, :]
    weights: tl.tuple = ()
    for g in tl.static_range(CELL.gates):
        weights = weights + (load_weight(weight, i_d, g, b_o, m_o, b_o, m_o, CELL, PRODUCTS),)  # noqa: RUF005
    b_state = (i_d * samples + i_n) * CELL.H + rows(CELL.H, b_o, M)
    b_dh = tl.zeros((M, O), tl.float32)
    b_dc = b_dh
    if dlast_h is not None:
        b_dh = load_float(dlast_h + b_state, m)
    if dlast_c is not None:
        b_dc = load_float(dlast_c + b_state, m)
    i_t = step_of(longest - 1, i_d, longest)
    next_kept = load_step(saved, gradient, before, i_d, i_t, i_n, steps, samples, b_o, m, CELL, M, O)
    next_masks = load_masks(masks, i_t, i_n, i_d, steps, samples, b_o, m, CELL, M)
    p_dgates = dgates + (i_d * steps * samples + i_n) * (CELL.gradients * CELL.H)
    for i in range(longest):
        b_kept, b_masks = next_kept, next_masks
        p_step = p_dgates + i_t.to(tl.int64) * samples * (CELL.gradients * CELL.H)
        m_t = (i_t < b_length)[:, None] & m_o[None, :]
        i_t = step_of(longest - 2 - i, i_d, longest)
        next_kept = load_step(saved, gradient, before, i_d, i_t, i_n, steps, samples, b_o, m, CELL, M, O)
        if CELL.each_step:
            next_masks = load_masks(masks, i_t, i_n, i_d, steps, samples, b_o, m, CELL, M)
        b_found = gradients_of(b_kept, b_dh, b_dc, m_t, CELL)
        b_dc, b_direct = b_found[CELL.gradients], b_found[CELL.gradients + 1]
        if not CELL.reset_after:
            b_factor = product(b_found[2], weights[2], tl.zeros((M, O), tl.float32), weight, PRODUCTS)
            b_dr, b_more = before_reset(b_factor, b_kept[0], b_kept[4], b_masks, CELL)
            b_found = (b_found[0] * tl.where(m_t, b_dr, 0.0), b_found[1], b_found[2])
            b_direct += tl.where(m_t, b_more, 0.0)
        acc = tl.zeros((M, O), tl.float32)
        accs: tl.tuple = ()
        for g in tl.static_range(COUNT):
            if CELL.masks > 1:
                accs = accs + (product(b_found[FIRST + g], weights[g], tl.zeros((M, O), tl.float32), weight, PRODUCTS),)  # noqa: RUF005
            else:
                acc = product(b_found[FIRST + g], weights[g], acc, weight, PRODUCTS)
        b_new = joined(b_direct, accs if CELL.masks > 1 else (acc,), b_masks, COUNT, CELL)
        b_dh = tl.where(m_t, b_new, b_dh)
        store_all(p_step, b_found, b_o, m, CELL.gradients, CELL.gradients, CELL.H, M)
    for s in tl.static_range(CELL.gradients):
        pitch = samples * (CELL.gradients * CELL.H)
        clear_rest(p_dgates, longest, steps, pitch, s * CELL.H + rows(CELL.gradients * CELL.H, b_o, M), m)
    if dh0 is not None:
        store_as(dh0 + b_state, b_dh, m)
    if dc0 is not None:
        store_as(dc0 + b_state, b_dc, m)


@triton.jit
def own_memory(scratch: tl.tensor, i: tl.tensor, H: tl.constexpr, M: tl.constexpr) -> tl.tensor:
    """Return where the ``i``-th of a program's four tiles of states, ``(M, H)``, begins."""
    return scratch + (tl.program_id(0).to(tl.int64) * 4 + i) * (M * H)


@triton.jit
def wide_products(
    accs: tl.tensor,
    p_state: tl.tensor,  # (M, H)
    weight: tl.tensor,
    masks: tl.tensor,
    i_d: tl.tensor,
    i_t: tl.tensor,
    i_n: tl.tensor,
    steps: tl.tensor,
    samples: tl.tensor,
    m_n: tl.tensor,
    b_o: tl.tensor,
    m_o: tl.tensor,
    FIRST: tl.constexpr,  # of the gates
    COUNT: tl.constexpr,
    MASKED: tl.constexpr,
    CELL: tl.constexpr,
    TILE: tl.constexpr,
    PRODUCTS: tl.constexpr,
) -> tl.tensor:
    """Add the products of a state with ``COUNT`` gates' weights, for ``O`` hidden units."""
    for k0 in range(0, CELL.H, TILE.R):
        b_k, m_k = units(k0, CELL.H, TILE.R)
        m = m_n[:, None] & m_k[None, :]
        b_h = tl.load(p_state + rows(CELL.H, b_k, TILE.M), mask=m, other=0.0)
        if MASKED:
            b_masks = load_masks(masks, i_t, i_n, i_d, steps, samples, b_k, m, CELL, TILE.M)
        sums: tl.tuple = ()
        for g in tl.static_range(COUNT):
            b_w = load_weight(weight, i_d, FIRST + g, b_k, m_k, b_o, m_o, CELL, PRODUCTS)
            b = masked(b_h, b_masks, FIRST + g, CELL) if MASKED else b_h
            sums = sums + (product(b, b_w, accs[g], weight, PRODUCTS),)  # noqa: RUF005
        accs = sums
    return accs


@triton.jit(do_not_specialize=SIZES)
def wide_forward_kernel(
    x: tl.tensor,  # as in forward_kernel
    weight: tl.tensor,
    bias_ih: tl.tensor,
    bias_hh: tl.tensor,
    masks: tl.tensor,
    lengths: tl.tensor,
    h0: tl.tensor,
    c0: tl.tensor,
    output: tl.tensor,
    last_h: tl.tensor,
    last_c: tl.tensor,
    saved: tl.tensor,
    scratch: tl.tensor,  # (programs, 4, M, H) float32: h twice; then c twice, or the product's factor of n, and z
    steps: tl.int32,
    samples: tl.int64,
    CELL: tl.constexpr,
    TILE: tl.constexpr,
    PRODUCTS: tl.constexpr,
) -> tl.tensor:
    """Run the cell over ``M`` sequences in one direction, ``O`` hidden units at a time."""
    M: tl.constexpr = TILE.M
    H: tl.constexpr = CELL.H
    EARLY: tl.constexpr = CELL.gates if CELL.reset_after else 2
    PITCH: tl.constexpr = CELL.D * H
    MASKED: tl.constexpr = CELL.masks > 0
    i_d, i_n, m_n, b_length, longest = sequences(lengths, samples, steps, CELL.D, M)
    i_state = (i_d * samples + i_n) * H
    p_out = output + i_n * PITCH + i_d * H
    for j0 in range(0, H, TILE.O):
        b_o, m_o = units(j0, H, TILE.O)
        m = m_n[:, None] & m_o[None, :]
        b_at = rows(H, b_o, M)
        tl.store(own_memory(scratch, 0, H, M) + b_at, load_float(h0 + i_state + b_at, m), mask=m)
        if CELL.lstm:
            tl.store(own_memory(scratch, 2, H, M) + b_at, load_float(c0 + i_state + b_at, m), mask=m)
        clear_rest(p_out, longest, steps, samples * PITCH, rows(PITCH, b_o, M), m)
        if saved is not None and not CELL.reset_after:
            clear_rest(
                saved + (i_d * steps * samples + i_n) * (CELL.slots * H), longest, steps, samples * (CELL.slots * H),
                rows(CELL.slots * H, b_o, M), m,
            )  # fmt: skip
    tl.debug_barrier()
    for i in range(longest):
        i_t = step_of(i, i_d, longest)
        i_row = i_t.to(tl.int64) * samples
        p_saved = saved
        if saved is not None:
            p_saved = saved + (i_d * steps * samples + i_n + i_row) * (CELL.slots * H)
        p_h, p_new = own_memory(scratch, i % 2, H, M), own_memory(scratch, 1 - i % 2, H, M)
        p_two, p_three = own_memory(scratch, 2, H, M), own_memory(scratch, 3, H, M)
        if not CELL.reset_after:
            for j0 in range(0, H, TILE.O):
                b_o, m_o = units(j0, H, TILE.O)
                m = m_n[:, None] & m_o[None, :]
                b_at = rows(H, b_o, M)
                b_biases = biases_of(bias_ih, bias_hh, i_d, b_o, m_o, CELL, TILE.O)
                b_x = load_input(x, b_biases, i_row + i_n, steps * samples, i_d, b_o, m, CELL, M)
                accs = wide_products(
                    (b_x[0], b_x[1]), p_h, weight, masks, i_d, i_t, i_n, steps, samples, m_n, b_o, m_o,
                    0, 2, MASKED, CELL, TILE, PRODUCTS,
                )  # fmt: skip
                b_r, b_z = sigmoid(accs[0]), sigmoid(accs[1])
                b_masks = load_masks(masks, i_t, i_n, i_d, steps, samples, b_o, m, CELL, M)
                b_h = tl.load(p_h + b_at, mask=m, other=0.0)
                tl.store(p_two + b_at, b_r * masked(b_h, b_masks, 2, CELL), mask=m)
                tl.store(p_three + b_at, b_z, mask=m)
                if saved is not None:
                    store_as(p_saved + rows(CELL.slots * H, b_o, M), b_r, m)
            tl.debug_barrier()
        for j0 in range(0, H, TILE.O):
            b_o, m_o = units(j0, H, TILE.O)
            m = m_n[:, None] & m_o[None, :]
            b_at = rows(H, b_o, M)
            m_t = (i_t < b_length)[:, None] & m_o[None, :]
            b_biases = biases_of(bias_ih, bias_hh, i_d, b_o, m_o, CELL, TILE.O)
            b_x = load_input(x, b_biases, i_row + i_n, steps * samples, i_d, b_o, m, CELL, M)
            if CELL.reset_after:
                accs = wide_products(
                    sums_of(b_x, b_biases, CELL, M, TILE.O), p_h, weight, masks, i_d, i_t, i_n, steps, samples,
                    m_n, b_o, m_o, 0, EARLY, MASKED, CELL, TILE, PRODUCTS,
                )  # fmt: skip
            else:
                accs = wide_products(
                    (b_x[2],), p_two, weight, masks, i_d, i_t, i_n, steps, samples, m_n, b_o, m_o,
                    2, 1, False, CELL, TILE, PRODUCTS,
                )  # fmt: skip
            b_h = tl.load(p_h + b_at, mask=m, other=0.0)
            if CELL.lstm:
                b_c = tl.load(own_memory(scratch, 2 + i % 2, H, M) + b_at, mask=m, other=0.0)
                b_new, b_cell, b_i, b_f, b_g, b_gate = lstm_step(accs[0], accs[1], accs[2], accs[3], b_c)
                tl.store(own_memory(scratch, 3 - i % 2, H, M) + b_at, tl.where(m_t, b_cell, b_c), mask=m)
                b_kept: tl.tuple = (b_c, b_i, b_f, b_g, b_gate)
            else:
                if CELL.reset_after:
                    b_r, b_z = sigmoid(accs[0]), sigmoid(accs[1])
                    b_g = tanh(b_x[2] + b_r * accs[2])
                    b_kept = (b_r, b_z, b_g, accs[2])
                else:
                    b_z, b_g = tl.load(p_three + b_at, mask=m, other=0.0), tanh(accs[0])
                    b_kept = (b_z, b_g)
                b_new = b_g + b_z * (b_h - b_g)
            tl.store(p_new + b_at, tl.where(m_t, b_new, b_h), mask=m)
            store_as(p_out + i_row * PITCH + rows(PITCH, b_o, M), tl.where(m_t, b_new, 0.0), m)
            if saved is not None:
                if CELL.reset_after:
                    store_all(p_saved, b_kept, b_o, m, CELL.slots, CELL.slots, H, M)
                else:  # r is there
                    store_all(p_saved + H, b_kept, b_o, m, 2, CELL.slots, H, M)
        tl.debug_barrier()
    for j0 in range(0, H, TILE.O):
        b_o, m_o = units(j0, H, TILE.O)
        m = m_n[:, None] & m_o[None, :]
        b_at = rows(H, b_o, M)
        b_h = tl.load(own_memory(scratch, longest % 2, H, M) + b_at, mask=m, other=0.0)
        store_as(last_h + i_state + b_at, b_h, m)
        if CELL.lstm:
            b_c = tl.load(own_memory(scratch, 2 + longest % 2, H, M) + b_at, mask=m, other=0.0)
            store_as(last_c + i_state + b_at, b_c, m)


@triton.jit
def wide_products_back(
    accs: tl.tensor,  # one, or one for each gate
    p_gates: tl.tensor,  # (M, CELL.gradients, H) of a step, the first gate
    weight: tl.tensor,
    i_d: tl.tensor,
    m_n: tl.tensor,
    b_o: tl.tensor,
    m_o: tl.tensor,
    FIRST: tl.constexpr,  # of the gates
    COUNT: tl.constexpr,
    CELL: tl.constexpr,
    TILE: tl.constexpr,
    PRODUCTS: tl.constexpr,
) -> tl.tensor:
    """Add the products of ``COUNT`` gates' gradients with their weights, for ``O`` hidden units."""
    for k0 in range(0, CELL.H, TILE.R):
        b_k, m_k = units(k0, CELL.H, TILE.R)
        sums = accs
        for g in tl.static_range(COUNT):
            p = p_gates + g * CELL.H + rows(CELL.gradients * CELL.H, b_k, TILE.M)
            b_d = load_float(p, m_n[:, None] & m_k[None, :])
            b_w = load_weight(weight, i_d, FIRST + g, b_k, m_k, b_o, m_o, CELL, PRODUCTS)
            if len(accs) == 1:
                sums = (product(b_d, b_w, sums[0], weight, PRODUCTS),)
            else:
                sums = sums[:g] + (product(b_d, b_w, sums[g], weight, PRODUCTS),) + sums[g + 1 :]  # noqa: RUF005
        accs = sums
    return accs


@triton.jit
def zeros_for(COUNT: tl.constexpr, M: tl.constexpr, O: tl.constexpr) -> tl.tensor:  # noqa: E741
    """Return so many sums."""
    b_zeros: tl.tuple = ()
    for _ in tl.static_range(COUNT):
        b_zeros = b_zeros + (tl.zeros((M, O), tl.float32),)  # noqa: RUF005
    return b_zeros


@triton.jit(do_not_specialize=SIZES)
def wide_backward_kernel(
    gradient: tl.tensor,  # as in backward_kernel
    dlast_h: tl.tensor,
    dlast_c: tl.tensor,
    saved: tl.tensor,
    before: tl.tensor,
    weight: tl.tensor,
    masks: tl.tensor,
    lengths: tl.tensor,
    dgates: tl.tensor,
    dh0: tl.tensor,
    dc0: tl.tensor,
    scratch: tl.tensor,  # (programs, 4, M, H) float32: gradients of h, past the products, and of c twice, or past n's
    steps: tl.int32,
    samples: tl.int64,
    CELL: tl.constexpr,
    TILE: tl.constexpr,
    PRODUCTS: tl.constexpr,
) -> tl.tensor:
    """Go back over ``M`` sequences in one direction, ``O`` hidden units at a time."""
    M: tl.constexpr = TILE.M
    O: tl.constexpr = TILE.O  # noqa: E741
    H: tl.constexpr = CELL.H
    PITCH: tl.constexpr = CELL.gradients * H
    FIRST: tl.constexpr = CELL.gradients - CELL.gates
    COUNT: tl.constexpr = CELL.gates if CELL.reset_after else 2
    i_d, i_n, m_n, b_length, longest = sequences(lengths, samples, steps, CELL.D, M)
    i_state = (i_d * samples + i_n) * H
    p_dgates = dgates + (i_d * steps * samples + i_n) * PITCH
    p_dh, p_direct = own_memory(scratch, 0, H, M), own_memory(scratch, 1, H, M)
    for j0 in range(0, H, O):
        b_o, m_o = units(j0, H, O)
        m = m_n[:, None] & m_o[None, :]
        b_at = rows(H, b_o, M)
        b_dh, b_dc = zeros_for(2, M, O)
        if dlast_h is not None:
            b_dh = load_float(dlast_h + i_state + b_at, m)
        if dlast_c is not None:
            b_dc = load_float(dlast_c + i_state + b_at, m)
        tl.store(p_dh + b_at, b_dh, mask=m)
        if CELL.lstm:
            tl.store(own_memory(scratch, 2, H, M) + b_at, b_dc, mask=m)
        for s in tl.static_range(CELL.gradients):
            clear_rest(p_dgates, longest, steps, samples * PITCH, s * H + rows(PITCH, b_o, M), m)
    tl.debug_barrier()
    for i in range(longest):
        i_t = step_of(longest - 1 - i, i_d, longest)
        p_step = p_dgates + i_t.to(tl.int64) * samples * PITCH
        for j0 in range(0, H, O):
            b_o, m_o = units(j0, H, O)
            m = m_n[:, None] & m_o[None, :]
            b_at = rows(H, b_o, M)
            m_t = (i_t < b_length)[:, None] & m_o[None, :]
            b_kept = load_step(saved, gradient, before, i_d, i_t, i_n, steps, samples, b_o, m, CELL, M, O)
            b_dh = tl.load(p_dh + b_at, mask=m, other=0.0)
            b_dc = b_dh
            if CELL.lstm:
                b_dc = tl.load(own_memory(scratch, 2 + i % 2, H, M) + b_at, mask=m, other=0.0)
            b_found = gradients_of(b_kept, b_dh, b_dc, m_t, CELL)
            if CELL.lstm:
                tl.store(own_memory(scratch, 3 - i % 2, H, M) + b_at, b_found[CELL.gradients], mask=m)
            tl.store(p_direct + b_at, b_found[CELL.gradients + 1], mask=m)
            store_all(p_step, b_found, b_o, m, CELL.gradients, CELL.gradients, H, M)
        tl.debug_barrier()
        p_past = p_direct
        if not CELL.reset_after:
            p_past = own_memory(scratch, 2, H, M)
            for j0 in range(0, H, O):
                b_o, m_o = units(j0, H, O)
                m = m_n[:, None] & m_o[None, :]
                b_at = rows(H, b_o, M)
                m_t = (i_t < b_length)[:, None] & m_o[None, :]
                (b_factor,) = wide_products_back(
                    zeros_for(1, M, O), p_step + 2 * H, weight, i_d, m_n, b_o, m_o, 2, 1, CELL, TILE, PRODUCTS
                )
                b_kept = load_step(saved, None, before, i_d, i_t, i_n, steps, samples, b_o, m, CELL, M, O)
                b_masks = load_masks(masks, i_t, i_n, i_d, steps, samples, b_o, m, CELL, M)
                b_dr, b_more = before_reset(b_factor, b_kept[0], b_kept[4], b_masks, CELL)
                b_dr = tl.where(m_t, b_dr * b_kept[0] * (1.0 - b_kept[0]), 0.0)
                store_as(p_step + rows(PITCH, b_o, M), b_dr, m)
                b_more = tl.load(p_direct + b_at, mask=m, other=0.0) + tl.where(m_t, b_more, 0.0)
                tl.store(p_past + b_at, b_more, mask=m)
            tl.debug_barrier()
        for j0 in range(0, H, O):
            b_o, m_o = units(j0, H, O)
            m = m_n[:, None] & m_o[None, :]
            b_at = rows(H, b_o, M)
            m_t = (i_t < b_length)[:, None] & m_o[None, :]
            accs = wide_products_back(
                zeros_for(COUNT if CELL.masks > 1 else 1, M, O), p_step + FIRST * H, weight, i_d, m_n, b_o, m_o,
                0, COUNT, CELL, TILE, PRODUCTS,
            )  # fmt: skip
            b_masks = load_masks(masks, i_t, i_n, i_d, steps, samples, b_o, m, CELL, M)
            b_past = tl.load(p_past + b_at, mask=m, other=0.0)
            b_dh = joined(b_past, accs, b_masks, COUNT, CELL)
            tl.store(p_dh + b_at, tl.where(m_t, b_dh, b_past), mask=m)
        tl.debug_barrier()
    for j0 in range(0, H, O):
        b_o, m_o = units(j0, H, O)
        m = m_n[:, None] & m_o[None, :]
        b_at = rows(H, b_o, M)
        if dh0 is not None:
            store_as(dh0 + i_state + b_at, tl.load(p_dh + b_at, mask=m, other=0.0), m)
        if dc0 is not None:
            b_dc = tl.load(own_memory(scratch, 2 + longest % 2, H, M) + b_at, mask=m, other=0.0)
            store_as(dc0 + i_state + b_at, b_dc, m)
