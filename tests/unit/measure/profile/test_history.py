"""A log of blocks and notes becomes a recording in the trace's own words."""

from __future__ import annotations

from peftplan.measure.profile.history import Change, History, Note, recording_of
from peftplan.measure.trace.account import activations_bytes, breakdown, moments, peak_event, resident
from peftplan.measure.trace.replay import replay

W, A, S, OTHER = 1, 2, 3, 4  # addresses of weights, adapter, optimizer state, something unnamed


def step(*log):
    """A step of these entries on a small model."""
    standing = [(W, 4096), (A, 1024), (S, 2048), (OTHER, 100)]
    named = {W: "parameter", A: "adapter", S: "optimizer state"}
    return recording_of(History(standing, named, list(log)))


PLAIN = (
    Note(moment="forward"),
    Change(10, 512),
    Note(category="input", addresses=(10,)),
    Change(11, 8192),
    Note(moment="loss"),
    Change(12, 600),
    Note(moment="forward end"),
    Change(13, 700),
    Note(moment="backward"),
    Note(depth=1),
    Change(14, 2000),
    Note(depth=-1),
    Change(15, 1024),
    Change(14, 0),
    Change(11, 0),
    Note(moment="optimizer_step"),
    Note(category="gradient", addresses=(15,)),
    Change(16, 300),
    Note(moment="step end"),
)


def words(recording):
    return {recording.sizes[n]: recording.texts[c] for n, c in enumerate(recording.categories)}


def test_blocks_are_told_apart_as_the_trace_tells_them():
    """Forward makes activations, a block run in backward recomputed ones, what else comes is temporary or named."""
    found = words(step(*PLAIN))
    assert found[8192] == found[600] == "activation"
    assert found[2000] == "recomputed activation"
    assert found[700] == found[300] == "temporary"
    assert found[1024] == "gradient"
    assert found[512] == "input"
    assert found[100] == "buffer"  # what an earlier step has left


def test_moments_and_state_follow():
    """Levels are sums of blocks, each rounded up to 512 bytes; `loaded` is before states and what steps leave."""
    recording = step(*PLAIN)
    replayed = replay(recording)
    found = moments(recording, replayed)
    assert found["loaded"] == 4096 + 1024
    standing = 4096 + 1024 + 2048 + 512
    assert found["forward"] == standing + 512 + 8192
    assert found["forward_end"] == found["forward"] + 1024
    assert found["loss"] == found["forward_end"] + 1024
    assert found["backward"] == found["loss"] + 2048 + 1024
    assert resident(recording) == {
        "weights": 4196,
        "adapters": 1024,
        "gradients": 1024,
        "master_weights": 0,
        "optimizer_states": 2048,
    }
    assert activations_bytes(recording) == 8192 + 600
    moment, at = peak_event(recording, replayed)
    assert moment == "backward"
    assert breakdown(recording, moment, at).bytes == found["backward"]


def test_an_address_may_be_used_again():
    """A block at the address of one that went is another block; what goes without having come is passed over."""
    recording = step(Note(moment="forward"), Change(20, 100), Change(20, 0), Change(20, 200), Change(99, 0))
    assert recording.sizes[-2:] == [100, 200]
    assert recording.events[-3:] == [5, -5, 6]
