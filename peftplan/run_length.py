"""How long a run is: steps and tokens, from what a request states or from the lengths of a training set's file."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from peftplan.cost.lengths import Batching, packed, padded
from peftplan.report import DataFacts
from peftplan.request import Request
from peftplan.specs.lengths import Lengths
from peftplan.styles import style_of


@dataclass(frozen=True, slots=True)
class RunLength:
    """How long a run is: optimizer steps, real tokens, and the share of a step's tokens that is computed."""

    num_steps: int
    num_tokens: int
    computed_frac: float
    low_frac: float = 1.0
    high_frac: float = 1.0
    data: DataFacts | None = None
    notes: tuple[str, ...] = ()


def length_of(request: Request) -> RunLength:
    """The length of a run that states one; its file is read if it names one."""
    seq_len = request.seq_len or 1
    rows = request.micro_batch * request.grad_accum * request.gpus
    if request.data is not None:
        return _length_of_data(request, seq_len, rows)
    if request.tokens is not None:
        steps = -(-request.tokens // (rows * seq_len * style_of(request).rows))
        return RunLength(steps, request.tokens, 1.0, notes=tuple(_total_notes(request)))
    sequences = _up((request.examples or 0) * request.epochs)
    note = f"examples are taken as full sequences of {seq_len:,} tokens; --data says how long they are"
    return RunLength(ceil(sequences / rows), sequences * seq_len * style_of(request).rows, 1.0, notes=(note,))


def _length_of_data(request: Request, seq_len: int, rows: int) -> RunLength:
    """A set's own examples, or so many more of their lengths as --examples or --tokens says."""
    from peftplan.catalog.datasets import read_lengths  # few runs bring a file

    lengths = read_lengths(request.data or "", request.chars_per_token)
    if request.packing:
        batching = packed(lengths, seq_len)
    else:
        grouped = request.grad_accum if request.group_by_length else 0
        batching = padded(lengths, seq_len, request.micro_batch * request.gpus, grouped)
    if request.tokens is not None:
        passes = request.tokens / batching.num_tokens
    elif request.examples is not None:
        passes = request.examples * request.epochs / batching.num_examples
    else:
        passes = request.epochs
    sequences = _up(batching.num_sequences * passes)
    return RunLength(
        num_steps=ceil(sequences / rows),
        num_tokens=round(batching.num_tokens * passes),
        computed_frac=batching.mean_length / seq_len,
        low_frac=lengths.low_frac if request.tokens is None else 1.0,
        high_frac=_most(lengths, batching, seq_len, request),
        data=_data_facts(lengths, batching),
        notes=(*_data_notes(request, lengths, batching), *_total_notes(request)),
    )


def _up(sequences: float) -> int:
    """Rounded up, but for the last digits: three passes of a third are one, not one and a bit."""
    return ceil(sequences * (1 - 1e-12))


def _total_notes(request: Request) -> list[str]:
    if request.tokens is None or request.epochs == 1:
        return []
    return ["--tokens is the run's total: --epochs does not multiply it"]


def _most(lengths: Lengths, batching: Batching, seq_len: int, request: Request) -> float:
    """How many more tokens than estimated there may be: a padded batch never exceeds its sequence length."""
    if request.tokens is not None:
        return 1.0
    return lengths.high_frac if request.packing else min(lengths.high_frac, seq_len / batching.mean_length)


def _data_facts(lengths: Lengths, batching: Batching) -> DataFacts:
    return DataFacts.model_construct(
        num_examples=lengths.num_examples,
        num_tokens=lengths.num_tokens,
        median_length=lengths.quantile(0.5),
        longest=lengths.longest,
        mean_computed_length=batching.mean_length,
        waste_frac=batching.waste_frac,
        truncated_frac=batching.truncated_tokens / lengths.num_tokens,
        num_truncated=batching.num_truncated,
        num_empty=lengths.num_empty,
        num_broken=lengths.num_broken,
        broken_lines=lengths.broken_lines,
        sampled_frac=lengths.sampled_frac,
        basis=lengths.basis,
    )


def _data_notes(request: Request, lengths: Lengths, batching: Batching) -> list[str]:
    notes = [f"{lengths.num_examples:,} examples, tokens {lengths.basis}"]
    if lengths.sampled_frac < 1:
        notes.append(f"{lengths.sampled_frac:.0%} of the file was read, and stands for all of it")
    if lengths.num_broken:
        first = ", ".join(map(str, lengths.broken_lines))
        where = (
            f" (line {first}{', ...' if lengths.num_broken > len(lengths.broken_lines) else ''})" if first else ""
        )
        notes.append(f"broken lines, skipped: {lengths.num_broken:,}{where}")
    if lengths.num_empty:
        notes.append(f"examples without text, skipped: {lengths.num_empty:,}")
    if batching.num_truncated:
        lost = batching.truncated_tokens / lengths.num_tokens
        notes.append(
            f"{batching.num_truncated:,} examples are cut at the sequence length: {lost:.1%} of all tokens"
        )
    how = "packed" if request.packing else "padded to the longest of a batch"
    notes.append(f"{how}: {batching.waste_frac:.1%} of the computed tokens are padding")
    if not request.packing and batching.waste_frac > 0:
        notes.append("a step's time is taken as proportional to its tokens, its update and communication apart")
    return notes
