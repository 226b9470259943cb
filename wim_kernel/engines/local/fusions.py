"""Small operations of a model, each fused into one Triton kernel and lent to it inside a step.

At a decode step's size a norm, a rotation or a gate written in PyTorch is five to ten launches that each cost more than
their work; in prefill each is five to ten passes over memory. What is lent here is found by its form, tried against
the model's own code on random numbers, and left alone where it differs; outside a step the model runs by itself.
"""

# mypy: disable-error-code="misc,no-untyped-def,no-untyped-call,index,operator,arg-type"
from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from wim_kernel.engines.local.kernels import available, interpreted, on_device

try:
    import triton
    import triton.language as tl
except ImportError:  # pragma: no cover - triton comes with every CUDA build of torch
    triton = None

ROTARY = "apply_rotary_pos_emb"

if triton is not None:

    @triton.jit
    def _rms_norm(
        source, weight, to, rows, eps, WIDTH: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr,
        AROUND_ONE: tl.constexpr,
    ):  # fmt: skip
        row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
        column = tl.arange(0, BLOCK)
        mask = (row[:, None] < rows) & (column[None, :] < WIDTH)
        at = row.to(tl.int64)[:, None] * WIDTH + column[None, :]
        x = tl.load(source + at, mask=mask, other=0.0).to(tl.float32)
        w = tl.load(weight + column, mask=column < WIDTH, other=0.0)
        x = x * tl.rsqrt(tl.sum(x * x, 1) / WIDTH + eps)[:, None]
        if AROUND_ONE:
            y = x * (1.0 + w.to(tl.float32))[None, :]
        else:
            y = x.to(to.dtype.element_ty) * w[None, :]
        tl.store(to + at, y.to(to.dtype.element_ty), mask=mask)

    @triton.jit
    def _turn(
        source, to, s_row, s_head, s_token, cos, sin, c_row, c_token, row, token, tokens, heads,
        HALF: tl.constexpr, BLOCK: tl.constexpr, HEADS: tl.constexpr,
    ):  # fmt: skip
        head = tl.arange(0, HEADS)[:, None]
        d = tl.arange(0, BLOCK)[None, :]
        mask = (head < heads) & (d < HALF)
        at = source + row * s_row + token * s_token + head * s_head + d
        first = tl.load(at, mask=mask, other=0.0).to(tl.float32)
        second = tl.load(at + HALF, mask=mask, other=0.0).to(tl.float32)
        angle = row * c_row + token * c_token + d
        cos1 = tl.load(cos + angle, mask=d < HALF, other=0.0).to(tl.float32)
        cos2 = tl.load(cos + angle + HALF, mask=d < HALF, other=0.0).to(tl.float32)
        sin1 = tl.load(sin + angle, mask=d < HALF, other=0.0).to(tl.float32)
        sin2 = tl.load(sin + angle + HALF, mask=d < HALF, other=0.0).to(tl.float32)
        at = to + ((row * tokens + token) * heads + head) * (2 * HALF) + d
        tl.store(at, (first * cos1 - second * sin1).to(to.dtype.element_ty), mask=mask)
        tl.store(at + HALF, (second * cos2 + first * sin2).to(to.dtype.element_ty), mask=mask)

    @triton.jit
    def _rotate(
        query, key, to_query, to_key, q_row, q_head, q_token, k_row, k_head, k_token, cos, sin, c_row, c_token,
        tokens, heads, key_heads, HALF: tl.constexpr, BLOCK: tl.constexpr, HEADS: tl.constexpr,
        KEY_HEADS: tl.constexpr,
    ):  # fmt: skip
        row = (tl.program_id(0) // tokens).to(tl.int64)
        token = (tl.program_id(0) % tokens).to(tl.int64)
        _turn(
            query, to_query, q_row, q_head, q_token, cos, sin, c_row, c_token, row, token, tokens, heads,
            HALF, BLOCK, HEADS,
        )  # fmt: skip
        _turn(
            key, to_key, k_row, k_head, k_token, cos, sin, c_row, c_token, row, token, tokens, key_heads,
            HALF, BLOCK, KEY_HEADS,
        )  # fmt: skip

    @triton.jit
    def _gate(gate, up, to, count, BLOCK: tl.constexpr):
        at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        x = tl.load(gate + at, mask=at < count, other=0.0).to(tl.float32)
        y = tl.load(up + at, mask=at < count, other=0.0)
        x = (x * tl.sigmoid(x)).to(y.dtype)
        tl.store(to + at, (x * y).to(to.dtype.element_ty), mask=at < count)


def rms_norm(source: Tensor, weight: Tensor, eps: float, *, around_one: bool) -> Tensor:
    """Root mean square norm over the last dimension, contiguous; weights around one as Gemma has them, or as they are."""
    width = source.shape[-1]
    to, rows, block = torch.empty_like(source), source.numel() // width, 1 << (width - 1).bit_length()
    together = max(1, min(16, 1024 // block))
    with on_device(source.device):
        _rms_norm[(triton.cdiv(rows, together),)](
            source, weight, to, rows, eps, WIDTH=width, BLOCK=block, ROWS=together, AROUND_ONE=around_one,
            num_warps=8 if block >= 2048 else 4,
        )  # fmt: skip
    return to


def rotate(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Rotary positions by halves: query (B, H, M, D), key (B, K, M, D), cos and sin (B or 1, M, D)."""
    (rows, heads, tokens, size), key_heads = query.shape, key.shape[1]
    to_query = query.new_empty(rows, tokens, heads, size).transpose(1, 2)
    to_key = key.new_empty(rows, tokens, key_heads, size).transpose(1, 2)
    c_row = cos.stride(0) if cos.shape[0] == rows else 0
    half = size // 2
    with on_device(query.device):
        _rotate[(rows * tokens,)](
            query, key, to_query, to_key, *query.stride()[:3], *key.stride()[:3], cos, sin, c_row, cos.stride(1),
            tokens, heads, key_heads, HALF=half, BLOCK=1 << (half - 1).bit_length(),
            HEADS=1 << (heads - 1).bit_length(), KEY_HEADS=1 << (key_heads - 1).bit_length(), num_warps=4,
        )  # fmt: skip
    return to_query, to_key


def gated(gate: Tensor, up: Tensor) -> Tensor:
    """``silu(gate) * up``, both contiguous and of one shape."""
    to, count = torch.empty_like(up), up.numel()
    with on_device(up.device):
        _gate[(triton.cdiv(count, 1024),)](gate, up, to, count, BLOCK=1024, num_warps=4)
    return to


class Fusions:
    """Lends fused operations to a model.

    Args:
        model: a causal LM.
        wanted: asked at each call; if it says no, the model's own code runs.
    """

    def __init__(self, model: PreTrainedModel, wanted: Callable[[], bool]) -> None:
        self.model = model
        self.wanted = wanted
        self._lent: list[nn.Module] | None = None
        self._rotaries: list[tuple[Any, Any]] = []

    def install(self) -> None:
        """Put the operations in place; does nothing if they are."""
        if self._lent is not None:
            return
        self._lent, forms = [], {}
        for module in self.model.modules():
            weight = next(module.parameters(), None)
            if weight is None or "forward" in vars(module) or not available(weight.device):
                continue
            if type(module) not in forms:
                forms[type(module)] = _norm_form(module) or _gate_form(module)
                self._lend_rotary(module, weight)
            form = forms[type(module)]
            if form is not None:
                module.forward = functools.partial(self._forward, module, form)
                self._lent.append(module)

    def uninstall(self) -> None:
        """Give everything back as it was."""
        for module in self._lent or ():
            del module.forward
        for home, original in self._rotaries:
            setattr(home, ROTARY, original)
        self._lent, self._rotaries = None, []

    def _forward(self, module: nn.Module, form: Form, *args: Any, **kwargs: Any) -> Any:
        if kwargs or len(args) != 1 or not self.wanted() or not _fits(args[0]):
            return type(module).forward(module, *args, **kwargs)
        return form(module, args[0])

    def _lend_rotary(self, module: nn.Module, weight: Tensor) -> None:
        """Put ours in front of the rotation that an attention layer's file defines."""
        home = sys.modules[type(module).__module__]
        original = getattr(home, ROTARY, None)
        if original is None or not hasattr(module, "layer_idx") or isinstance(original, _Rotary):
            return
        if _rotates_alike(original, weight):
            setattr(home, ROTARY, _Rotary(original, self.wanted))
            self._rotaries.append((home, original))


Form = Callable[[Any, Tensor], Tensor]


class _Rotary:
    """A rotation that is ours inside a step, and the model's outside one."""

    def __init__(self, original: Callable[..., tuple[Tensor, Tensor]], wanted: Callable[[], bool]) -> None:
        self.original = original
        self.wanted = wanted

    def __call__(
        self, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        plain = not args and not kwargs and cos.ndim == 3 and cos.shape[-1] == q.shape[-1] == k.shape[-1]
        dense = q.stride(-1) == k.stride(-1) == cos.stride(-1) == sin.stride(-1) == 1
        if plain and dense and self.wanted() and _fits(q) and cos.stride() == sin.stride():
            return rotate(q, k, cos, sin)
        return self.original(q, k, cos, sin, *args, **kwargs)


def _fits(tensor: Tensor) -> bool:
    return tensor.is_cuda or interpreted()


def _norm_form(module: nn.Module) -> Form | None:
    """The module as a root mean square norm, if it is one."""
    weight = getattr(module, "weight", None)
    eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    if (
        weight is None
        or weight.ndim != 1
        or not isinstance(eps, float)
        or len(list(module.parameters())) != 1
    ):
        return None

    def form(module: Any, hidden: Tensor, around_one: bool) -> Tensor:
        if module.weight.dtype != hidden.dtype:
            return type(module).forward(module, hidden)
        eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
        return rms_norm(hidden.contiguous(), module.weight, eps, around_one=around_one)

    for around_one in (False, True):
        candidate = functools.partial(form, around_one=around_one)
        if _alike(module, candidate, weight.shape[0], weight):
            return candidate
    return None


def _gate_form(module: nn.Module) -> Form | None:
    """The module as a gated MLP with SiLU, if it is one."""
    parts = [getattr(module, name, None) for name in ("gate_proj", "up_proj", "down_proj")]
    if not all(isinstance(part, nn.Linear) for part in parts):
        return None

    def form(module: Any, hidden: Tensor) -> Tensor:
        return module.down_proj(gated(module.gate_proj(hidden), module.up_proj(hidden)))

    return form if _alike(module, form, parts[0].in_features, parts[0].weight) else None


@torch.inference_mode()
def _alike(module: nn.Module, form: Form, width: int, weight: Tensor) -> bool:
    """Whether the form gives what the module gives, on random numbers."""
    hidden = torch.randn(2, 3, width, device=weight.device, dtype=weight.dtype)
    try:
        return _close(form(module, hidden), type(module).forward(module, hidden))
    except Exception:  # whatever another form of module raises here, it is not this one
        return False


@torch.inference_mode()
def _rotates_alike(original: Callable[..., tuple[Tensor, Tensor]], weight: Tensor) -> bool:
    make = functools.partial(torch.randn, device=weight.device, dtype=weight.dtype)
    query, key, cos, sin = make(2, 3, 5, 16), make(2, 1, 5, 16), make(2, 5, 16), make(2, 5, 16)
    try:
        wanted = original(query, key, cos, sin)
        return all(map(_close, rotate(query, key, cos, sin), wanted))
    except Exception:  # a function of that name with other arguments
        return False


def _close(found: Tensor, wanted: Tensor) -> bool:
    tolerance = 1e-5 if wanted.dtype == torch.float32 else 2e-2
    found, wanted = found.float(), wanted.float()
    return found.shape == wanted.shape and bool((found - wanted).norm() <= tolerance * wanted.norm())
