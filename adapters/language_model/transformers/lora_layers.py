"""The linear layers of a loaded model, to which one adapter at a time is added while they compute."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear
from torch.utils.hooks import RemovableHandle

from adapters.models.lora import Adapter, Base, Matrix
from domain.errors import BadConfiguration

# The classes of transformers carry no types that say anything.
Model = Any
_PEFT = "base_model.model."
_KINDS = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}
_PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "int8": torch.int8}


@dataclass(frozen=True, slots=True)
class Kept:
    """A matrix as it waits in memory: numbers, or whole ones with a factor for each row (absmax quantisation)."""

    numbers: Tensor
    factors: Tensor | None = None

    @property
    def size(self) -> int:
        """Bytes that it takes."""
        return sum(part.numel() * part.itemsize for part in (self.numbers, self.factors) if part is not None)

    def restored(self, like: torch.dtype) -> Tensor:
        """Return the numbers as they compute; those without factors as they are."""
        return self.numbers if self.factors is None else (self.numbers * self.factors).to(like)

    def pinned(self) -> "Kept":
        """Return it in page-locked memory, from which a GPU reads several times as fast."""
        return Kept(self.numbers.pin_memory(), None if self.factors is None else self.factors.pin_memory())


Pairs = Mapping[str, tuple[Kept, Kept]]
Attached = Mapping[str, tuple[Tensor, Tensor]]


class LoraLayers:
    """Adds B(A(x)) to what linear layers give, whatever keeps their weights: torch, bitsandbytes or a class of ours.

    Hooks do it, and not the wrappers of the peft library: to exchange an adapter is to exchange two tensors a layer,
    layers without an adapter cost nothing, and every class of quantised layers will do. Where the model comes with a
    peft adapter (her persona, not merged), that one is off while another is on.
    """

    def __init__(self, model: Model) -> None:
        self._layers: dict[str, Any] = {}
        self._wrapped: list[Any] = []
        wrapper = ""
        for name, module in model.named_modules():
            if wrapper and name.startswith(wrapper):
                continue
            if hasattr(module, "base_layer"):
                self._wrapped.append(module)
                wrapper = f"{name}."
            if hasattr(module, "in_features") and hasattr(module, "out_features"):
                self._layers[name.removeprefix(_PEFT)] = module
        embedding = model.get_input_embeddings()
        self._vocabulary = int(embedding.num_embeddings)
        self._precision = embedding.weight.dtype if embedding.weight.is_floating_point() else torch.bfloat16
        self._handles: list[RemovableHandle] = []
        self.device: torch.device = model.device

    def base(self, names: frozenset[str]) -> Base:
        """Return what an adapter has to fit."""
        shapes = {name: (int(layer.in_features), int(layer.out_features)) for name, layer in self._layers.items()}
        return Base(names, shapes, self._vocabulary)

    def kept(self, adapter: Adapter, precision: str) -> Pairs:
        """Return an adapter in the precision that its expert asks for, its scale worked into B.

        Args:
            adapter: Checked against `base`.
            precision: `fp32`, `bf16`, `fp16`, `int8`, or `auto` for that of the model.

        Raises:
            BadConfiguration: Adapters are not kept in this precision.
        """
        if precision not in ("auto", *_PRECISIONS):
            raise BadConfiguration(
                f"Adapters are not kept in {precision}.", f"Set precision to one of: auto, {', '.join(_PRECISIONS)}."
            )
        kind = _PRECISIONS.get(precision, self._precision)
        pairs = {
            layer: (_kept(_tensor(a), kind), _kept(_tensor(b).float() * adapter.card.scale, kind))
            for layer, (a, b) in adapter.pairs.items()
        }
        if self.device.type == "cuda":
            return {layer: (a.pinned(), b.pinned()) for layer, (a, b) in pairs.items()}
        return pairs

    def on_device(self, pairs: Pairs) -> Attached:
        """Return an adapter where it computes; on a CPU that shares the memory."""
        return {
            layer: tuple(half.restored(self._precision).to(self.device, non_blocking=True) for half in halves)  # type: ignore[misc]
            for layer, halves in pairs.items()
        }

    def put(self, attached: Attached | None) -> None:
        """Answer with an adapter from now on; with None, as the model was loaded."""
        for handle in self._handles:
            handle.remove()
        self._handles = [
            self._layers[layer].register_forward_hook(_Addition(a, b)) for layer, (a, b) in (attached or {}).items()
        ]
        for module in self._wrapped:
            module.enable_adapters(attached is None)


class _Addition:
    """Adds B(A(x)) to what a layer gives."""

    def __init__(self, a: Tensor, b: Tensor) -> None:
        self._a, self._b = a, b

    def __call__(self, layer: object, given: tuple[Tensor, ...], output: Tensor) -> Tensor:
        change = linear(linear(given[0].to(self._a.dtype), self._a), self._b)
        return output + change.to(output.dtype)


def _tensor(matrix: Matrix) -> Tensor:
    return torch.frombuffer(matrix.content, dtype=_KINDS[matrix.kind]).reshape(matrix.shape)


def _kept(numbers: Tensor, kind: torch.dtype) -> Kept:
    if kind is not torch.int8:
        return Kept(numbers.to(kind))
    numbers = numbers.float()
    factors = (numbers.abs().amax(dim=1, keepdim=True) / 127).clamp(min=torch.finfo(torch.float32).tiny)
    return Kept((numbers / factors).round().to(torch.int8), factors)
