"""Weights held as whole numbers of eight bits on a CPU, read once a token; activations stay as precise as they were."""

from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

# The classes of transformers carry no types that say anything.
Model = Any
# Up to this many rows torch's kernel is the faster one; for more (a prompt) the weights become bf16 for a moment.
_FEW_ROWS = 16
# From here on the output layer streams from memory: two bytes an activation read it faster than torch's kernel does
# (262,144 x 640: 16 ms a token instead of 25, one thread of an EPYC 9004; 2,048 x 640: 0.18 instead of 0.09).
_LONG = 16_384
# Rows that are rounded at a time: an output layer in fp32 would be the largest thing in memory.
_ROWS = 4096
# Activations as 256 h + l with two signed bytes: the largest magnitude keeps h within [-127, 127].
_LARGEST = 127 * 256
_ZERO = 128


class Int8Linear(nn.Linear):
    """A linear layer y = x (q * s)^T + b with rows q in [-127, 127] and one bf16 factor s a row (absmax, symmetric).

    It is an `nn.Linear`, so that peft and hooks find what they look for; `weight` holds the whole numbers.
    """

    def __init__(self, linear: nn.Linear) -> None:
        nn.Module.__init__(self)  # `nn.Linear` would allocate weights
        self.in_features, self.out_features = linear.in_features, linear.out_features
        whole, factors = rounded(linear.weight)
        self.weight = nn.Parameter(whole, requires_grad=False)
        self.register_buffer("factors", factors)
        self.factors: Tensor
        self.bias = linear.bias

    def forward(self, input: Tensor) -> Tensor:
        rows = input.reshape(-1, self.in_features)
        if len(rows) <= _FEW_ROWS and input.dtype is torch.bfloat16:
            output = torch._weight_int8pack_mm(rows.contiguous(), self.weight, self.factors)
        else:
            output = rows @ (self.weight.to(input.dtype) * self.factors[:, None].to(input.dtype)).t()
        if self.bias is not None:
            output = output + self.bias
        return output.view(*input.shape[:-1], self.out_features)


class TwoByteLinear(nn.Module):
    """The same for a very long output: an exact product of whole numbers, with activations of two bytes.

    A row x of activations is written as f (256 h + l) with signed bytes h and l and f = max|x| / 32,512, which is finer
    than bf16 for all but the smallest; h and l are two rows of one product in 8-bit integers (VNNI), so that the
    weights are read once. A product of whole numbers does not depend on how many rows are computed together.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        whole, factors = rounded(linear.weight)
        self._packed = torch.ops.onednn.qlinear_prepack(whole, None)
        self.register_buffer("factors", factors.float())
        self.register_buffer("zeros", torch.zeros(self.out_features, dtype=torch.int64))
        self.factors: Tensor
        self.zeros: Tensor
        self.bias = linear.bias

    def forward(self, input: Tensor) -> Tensor:
        rows = input.reshape(-1, self.in_features).float()
        scale = rows.abs().amax(1, keepdim=True).clamp_(min=torch.finfo(torch.float32).tiny * _LARGEST) / _LARGEST
        whole = (rows / scale).round_()
        high = ((whole + _ZERO) / 256).floor_()
        halves = torch.cat((high, whole - 256 * high)).add_(_ZERO).to(torch.uint8)
        product = torch.ops.onednn.qlinear_pointwise(
            halves, 1.0, _ZERO, self._packed, self.factors, self.zeros, None, 1.0, 0, torch.float32, "none", [], ""
        )
        output: Tensor = product[: len(rows)].mul_(256).add_(product[len(rows) :]).mul_(scale).to(input.dtype)
        if self.bias is not None:
            output = output + self.bias
        return output.view(*input.shape[:-1], self.out_features)


def rounded(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return whole numbers, shape (out, in), and a bf16 factor for each row, shape (out,).

    The factor is rounded before the weights are divided by it, so that its own rounding costs nothing.
    """
    whole = torch.empty(weight.shape, dtype=torch.int8)
    factors = torch.empty(len(weight), dtype=torch.bfloat16)
    for start in range(0, len(weight), _ROWS):
        rows = slice(start, start + _ROWS)
        numbers = weight[rows].detach().float()
        factors[rows] = numbers.abs().amax(1).clamp_(min=1e-12) / 127
        whole[rows] = (numbers / factors[rows].float()[:, None]).round_().clamp_(-127, 127).to(torch.int8)
    return whole, factors


def hold_in_int8(model: Model) -> Model:
    """Replace every linear layer of a model on the CPU by its 8-bit form, one after the other, and return the model."""
    long = bool(torch.cpu.get_capabilities().get("avx512_vnni"))
    if long:
        import_module("torch.ao.quantization")  # registers the packed tensors of oneDNN
    linears = [(name, module) for name, module in model.named_modules() if type(module) is nn.Linear]
    for name, module in linears:
        parent, _, child = name.rpartition(".")
        form = TwoByteLinear if long and module.out_features >= _LONG else Int8Linear
        setattr(model.get_submodule(parent), child, form(module))
    return model
