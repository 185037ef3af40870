"""Which module runs, and to which one each autograd node belongs.

Modules are known by forward hooks, and in backward by the numbers of autograd's nodes (hooks of autograd
itself would change what is saved).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

nodes_made: Callable[[], int] = torch.autograd._get_sequence_nr  # by this thread; the number of the next one


class Modules:
    """Follows a model; `entered` is called whenever one of its modules begins to run."""

    def __init__(self, entered: Callable[[], None]) -> None:
        self.entered = entered
        self.running: list[str] = []  # outermost first
        self.nodes_noted = nodes_made()
        self._of_node: dict[int, str] = {}

    def watch(self, model: torch.nn.Module) -> None:
        """Follow which module runs."""
        for name, module in model.named_modules():
            module.register_forward_pre_hook(lambda _, __, name=name: self._enter(name))
            module.register_forward_hook(self._leave, always_call=True)
            checkpoint: Any = getattr(module, "_gradient_checkpointing_func", None)
            if checkpoint is not None:
                module._gradient_checkpointing_func = self._within(name, checkpoint)

    def note_nodes(self) -> None:
        """Nodes made since the last call belong to the module that runs now."""
        made = nodes_made()
        if self.running:
            for number in range(self.nodes_noted, made):
                self._of_node[number] = self.running[-1]
        self.nodes_noted = made

    def place(self) -> str:
        """The module that runs, or whose backward runs, else the autograd node's name."""
        if self.running:
            return self.running[-1]
        node = torch._C._current_autograd_node()
        if node is None:
            return ""
        return self._of_node.get(node._sequence_nr(), "") or node.name()

    def _enter(self, name: str) -> None:
        self.note_nodes()
        self.running.append(name)
        self.entered()

    def _leave(self, *_: Any) -> None:
        self.note_nodes()
        if self.running:
            self.running.pop()

    def _within(self, name: str, checkpoint: Callable[..., Any]) -> Callable[..., Any]:
        """A module's checkpoint, which runs and later recomputes its forward without its hooks."""

        def run(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            def entered(*given: Any, **named: Any) -> Any:
                self._enter(name)
                try:
                    return function(*given, **named)
                finally:
                    self._leave()

            return checkpoint(entered, *args, **kwargs)

        return run
