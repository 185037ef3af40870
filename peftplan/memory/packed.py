"""The flash-attention package on a row of several sequences, told apart by positions that begin anew.

Every layer compares the positions with a plain count, finds where sequences begin, and hands that to the kernel
for sequences of different lengths; nothing is gathered or put back.

Source: transformers-flash (_is_packed_sequence, _prepare_from_posids), flash-attention.
"""

from __future__ import annotations

from peftplan.memory.efficient import attention_flop
from peftplan.memory.unpadded import UnpaddedOps
from peftplan.specs.formats import BOOL, INT32, INT64
from peftplan.specs.tensors import Tensor, bytes_of


class PackedOps(UnpaddedOps):
    """What a batch without padding changes."""

    positions: Tensor | None = None  # of a batch that brings them along: [1, tokens]
    num_packed = 1  # sequences in its row
    positions_read = False

    def given_positions(self) -> Tensor | None:
        """The batch's own positions."""
        self.positions_read = True
        return self.positions

    def notes_starts(self) -> bool:
        """Whether the row holds several sequences, as every layer asks: a count, compared with the positions."""
        assert self.positions is not None
        tokens = self.positions.numel
        counted = self.new((tokens,), tokens, INT64, "arange", 0)
        first = self.new((), 1, INT64, "min", 8 * tokens)
        shifted = self.new((tokens,), tokens, INT64, "add")
        del counted, first
        apart = self.new((1, tokens), tokens, INT64, "sub", 16 * tokens)
        size = self.new((1, tokens), tokens, INT64, "abs")
        del apart
        total = self.new((), 1, INT64, "sum", 8 * tokens)
        del size
        several = self.new((), 1, BOOL, "_to_copy", 8)
        del total, shifted, several
        return self.num_packed > 1

    def flash_packed(self, q: Tensor, k: Tensor, v: Tensor, by_heads: bool, back: int) -> Tensor:
        """[1, heads, tokens, dim] in, [1, tokens, heads, dim] out."""
        assert self.positions is not None
        _, heads, tokens, dim = q.shape
        query, key, value = self._rows(q, by_heads), self._rows(k, by_heads), self._rows(v, False)
        number = self.num_packed
        first = self.new((), 1, INT64, "min", 8 * tokens)
        begins = self.new((tokens,), tokens, BOOL, "eq", 8 * tokens)
        del first
        places = self.new((number, 1), number, INT64, "nonzero", tokens)
        del begins
        narrow = self.new((number,), number, INT32, "_to_copy", 8 * number)
        end = self.new((1,), 1, INT32, "_to_copy", 4)
        starts = self.new((number + 1,), number + 1, INT32, "cat")
        del narrow, end
        lengths = self.new((number,), number, INT32, "sub", 8 * number)
        longest = self.new((), 1, INT32, "max", 4 * number)
        del lengths, places
        one, two, three = (self.part(x, (number, x.shape[1], tokens // number, dim)) for x in (q, k, v))
        flop = attention_flop(one, two, three, back), attention_flop(one, two, three, back, backward=True)
        del one, two, three
        out = self.varlen_kernel(query, key, value, starts, number, flop)
        del longest
        return self.view(out, (1, tokens, heads, dim))

    def _rows(self, x: Tensor, by_heads: bool) -> Tensor:
        """[tokens, heads, dim]: a copy of what lies head by head, or is a part of something wider."""
        _, heads, tokens, dim = x.shape
        part = x.storage is not None and bytes_of(x) < x.storage.record.nbytes
        if (by_heads and heads > 1 and tokens > 1) or part:
            x = self.contiguous(x)
        return self.view(x, (tokens, heads, dim))
