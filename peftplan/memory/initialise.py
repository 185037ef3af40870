"""What an initialisation takes once before training: its programs played on the tape, one matrix at a time."""

from __future__ import annotations

from peftplan.memory.player import Player
from peftplan.specs.method import Initialisation


def beside_the_model(found: Initialisation, num_tokens: int) -> tuple[int, int]:
    """(the most allocated beside the model, rounded as torch does; flop of all products and factorisations)."""
    most_bytes = num_flop = 0
    for program, count in found.programs:
        player = Player()
        player.grad_enabled = player.training = False
        out = program(player, num_tokens)
        del out
        most_bytes = max(most_bytes, player.peak_bytes)
        num_flop += count * sum(record.num_flop for record in player.records)
    return found.held_bytes + most_bytes, num_flop
