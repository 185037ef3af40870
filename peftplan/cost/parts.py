"""Which part of a model a launch belongs to, from the name of the module that ran it."""

from __future__ import annotations

from peftplan.specs.model import ModelSpec

_BASE = "base_layer"  # what stands beside an adapter, in peft's word
_MULTIPLY = ("matmul", "dequantise")


class Parts:
    """Parts by module, settled once for each: base, adapter, attention, head, loss, other.

    The base's own products and what unpacks its weights are `base`; fused attention, and products inside an
    attention module that no linear makes, `attention`; everything that an adapter adds beside its linear,
    casts and sums included, is `adapter`; norms, activations, residuals and embeddings are `other`.
    """

    def __init__(self, model: ModelSpec) -> None:
        self.head = model.head_path
        self.wrappers, self.linears = _wrappers(model)
        self._adapter: dict[str, bool] = {}

    def of(self, module: str, kind: str, of_loss: bool) -> str:
        """The part that a kernel of this kind in this module belongs to."""
        if of_loss and kind != "matmul":
            return "loss"
        if of_loss or module == self.head or module.startswith(self.head + "."):
            return "head"
        if kind == "attention":
            return "attention"
        if self._is_adapter(module):
            return "adapter"
        if kind in _MULTIPLY:
            return "base" if kind == "dequantise" or _leaf(module) in self.linears else "attention"
        return "other"

    def _is_adapter(self, module: str) -> bool:
        known = self._adapter.get(module)
        if known is None:
            rest = module
            inside = _leaf(rest) in self.wrappers
            while not inside and "." in rest:
                rest, _, name = rest.rpartition(".")
                if name == _BASE:  # below it stands the base again
                    break
                inside = _leaf(rest) in self.wrappers
            known = self._adapter[module] = inside
        return known


def _leaf(module: str) -> str:
    return module.rpartition(".")[2]


def _wrappers(model: ModelSpec) -> tuple[set[str], set[str]]:
    """Last names of modules that hold a base beside an adapter, and of modules that own matrices."""
    wrappers: set[str] = set()
    owners: set[str] = set()
    for owner, _, prefix in model.groups():
        for path, module in owner.walk(prefix):
            if _BASE in module.children and _leaf(path) != _BASE:
                wrappers.add(_leaf(path))
            if any(len(parameter.shape) > 1 for parameter in module.parameters.values()):
                owners.add(_leaf(path))
    return wrappers, owners
