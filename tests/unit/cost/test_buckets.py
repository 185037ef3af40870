"""Batches sorted within buckets: which lengths they have, and which steps a share of all falls on."""

from __future__ import annotations

from peftplan.cost.buckets import Bucketed, batch_lengths, steps_at
from peftplan.specs.lengths import Lengths

SPREAD = Lengths(tuple((tokens, 10) for tokens in range(20, 620, 3)), "a test")


def test_batches_of_a_bucket_become_shorter() -> None:
    """Within a bucket the longest examples come first, and a batch is as long as its longest."""
    found = batch_lengths(Bucketed(SPREAD, 5, 40, 1), 4, 1000)
    assert len(found) == 40
    for start in range(0, 40, 5):
        assert found[start : start + 5] == sorted(found[start : start + 5], reverse=True)
    assert found[5] > found[4]  # a new bucket begins


def test_no_batch_is_longer_than_the_truncation() -> None:
    """What is truncated counts as long as it is cut to."""
    found = batch_lengths(Bucketed(SPREAD, 5, 100, 1), 4, 300)
    assert max(found) == 300
    assert min(found) < 300


def test_the_same_lengths_are_drawn_every_time() -> None:
    """Two askings give the same batches, so that an answer can be told again."""
    batches = Bucketed(SPREAD, 20, 60, 10)
    assert batch_lengths(batches, 4, 768) == batch_lengths(batches, 4, 768)


def test_windows_stand_around_the_share_of_steps() -> None:
    """With windows of ten steps, one step in a hundred of a thousand lies above the first window."""
    longest = [100 + start // 10 for start in range(1000)]  # windows grow along the run
    windows, place = steps_at(longest, Bucketed(SPREAD, 20, 1000, 10), 0.99)
    assert [window.own[0] for window in windows] == list(range(199, 190, -1))
    assert windows[place].own == [198, 198]  # ten steps lie above it, which is one in a hundred
    assert windows[place].before == (197, 197)  # the longest and the last of the window before it


def test_without_a_cache_kept_every_step_is_a_window() -> None:
    """Where the cache is emptied after every step, a window is one step and the one before it."""
    windows, place = steps_at(list(range(1, 201)), Bucketed(SPREAD, 20, 200, 1), 0.99)
    assert windows[place] == ([197], [198])
