"""How people's spellings meet the catalogue's: one normal form, and the nearest names to a typo."""

from __future__ import annotations

from collections.abc import Iterable

_DROPPED = str.maketrans("", "", " -_")

# Below this similarity (difflib's ratio, 0..1) a suggestion reads as noise, not as what was meant.
_LIKENESS_FLOOR = 0.5


def normalise(name: str) -> str:
    """A name without regard to case, spaces, dashes and underscores; dots stay, 2.5 is not 25."""
    return name.casefold().translate(_DROPPED)


def nearest(name: str, spellings: Iterable[str]) -> list[str]:
    """The normalised `spellings` that are like `name`, most alike first."""
    from difflib import SequenceMatcher  # only a typo pays for its import

    # `someone/llama-2-7b` is more often a copy of a known model than a new one, so the part
    # behind the organisation is compared too.
    asked = {normalise(name), normalise(name.rpartition("/")[2])}
    likeness: dict[str, float] = {}
    for wanted in asked:
        matcher = SequenceMatcher(autojunk=False)
        matcher.set_seq2(wanted)
        for spelling in spellings:
            matcher.set_seq1(spelling)
            # Two upper bounds of the ratio, each far cheaper than it, settle most pairs.
            if min(matcher.real_quick_ratio(), matcher.quick_ratio()) >= _LIKENESS_FLOOR:
                likeness[spelling] = max(matcher.ratio(), likeness.get(spelling, 0.0))
    alike = [spelling for spelling, ratio in likeness.items() if ratio >= _LIKENESS_FLOOR]
    return sorted(alike, key=lambda spelling: (-likeness[spelling], len(spelling), spelling))
