"""The CUDA allocator's history as changes and notes, from entries as its snapshot has them."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")

from peftplan.measure.profile.cuda_meter import _FIRST_NOTE_BYTES, _active_blocks, read_entries
from peftplan.measure.profile.history import Change, Note


def entry(action, addr, size):
    return {"action": action, "addr": addr, "size": size, "stream": 0}


def test_notes_stand_where_their_blocks_were_made():
    """A note's own block is no change; entries before the first phase belong to no step."""
    notes = [Note(moment="forward"), Note(moment="loss")]
    first, second = _FIRST_NOTE_BYTES, _FIRST_NOTE_BYTES + 2
    entries = [
        entry("alloc", 1, 77),
        entry("alloc", 2, first),
        entry("free_requested", 2, first),
        entry("free_completed", 2, first),
        entry("segment_alloc", 1000, 2**21),
        entry("alloc", 3, 512),
        entry("alloc", 2, second),
        entry("free_requested", 2, second),
        entry("alloc", 2, 640),
        entry("free_requested", 3, 512),
        entry("free_requested", 2, 640),
        entry("alloc", 4, first),
    ]
    assert read_entries(entries, notes) == [
        notes[0],
        Change(3, 512),
        notes[1],
        Change(2, 640),
        Change(3, 0),
        Change(2, 0),
        Change(4, first),
    ]


def test_blocks_in_use_are_found_in_segments():
    """Addresses are stated by a block or follow from the sizes before it; free blocks are passed over."""
    segment = {
        "address": 1000,
        "blocks": [
            {"state": "active_allocated", "size": 1024, "requested_size": 900},
            {"state": "inactive", "size": 512, "requested_size": 0},
            {"state": "active_allocated", "size": 2048, "requested_size": 2000},
        ],
    }
    stated = {
        "address": 1,
        "blocks": [{"state": "active_allocated", "address": 9, "size": 512, "requested_size": 1}],
    }
    found = _active_blocks({"segments": [segment, stated]})
    assert found == [(1000, 900, 1024), (2536, 2000, 2048), (9, 1, 512)]
