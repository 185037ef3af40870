"""The closed form under other releases of the libraries: against recorded traces, and against traces run now."""

from __future__ import annotations

import pytest
from cases import Case
from overlays import RELEASES, NotInstalled, cases_of, differences, overlay, recorded, traced_under

from peftplan import Request, estimate
from peftplan.errors import BadInput
from peftplan.specs.behaviour import Behaviour
from peftplan.versions import (
    CHANGES,
    LIBRARIES,
    OLDEST,
    REFERENCE,
    behaviour,
    installed_versions,
    parse,
    versions_of,
)

CASES = recorded()
# Of so many figures all but this share are equal to the byte; the others differ by transients of one forward pass.
EXACT_FRAC = 0.97


def label(case: Case) -> str:
    """A name for the test: the releases, the family, the method."""
    return f"{case.request['transformers']}-{case.label()}"


def test_the_closed_form_follows_every_recorded_release() -> None:
    """Under four sets of releases resident state and activations are those of the trace to the byte."""
    assert {case.request["transformers"] for case in CASES} == {one["transformers"] for one in RELEASES}
    wrong = [(label(case), found) for case in CASES if (found := differences(case)).keys() & STATE]
    assert wrong == []


def test_nearly_every_recorded_case_is_exact_in_every_moment() -> None:
    """The peaks of forward, loss, backward and step are those of the trace to the byte."""
    exact = [not differences(case) for case in CASES]
    assert sum(exact) >= EXACT_FRAC * len(exact)


def test_a_release_matters() -> None:
    """The recorded answers are not those of the reference releases: the same requests without them differ."""
    from dataclasses import replace

    plain = [replace(c, request={k: v for k, v in c.request.items() if k not in LIBRARIES}) for c in CASES]
    assert sum(bool(differences(case)) for case in plain) > len(CASES) // 2


@pytest.mark.versions
@pytest.mark.parametrize("releases", RELEASES, ids=lambda one: one["transformers"])
def test_the_closed_form_agrees_with_a_trace_run_now(releases: dict[str, str]) -> None:
    """Under releases that pip installs beside the present ones every case's state and activations are exact."""
    pytest.importorskip("torch")
    try:
        overlay(releases)
    except NotInstalled as error:
        pytest.skip(f"pip cannot install {releases}: {error}")
    cases = traced_under(releases, cases_of(releases))
    assert len(cases) > len(cases_of(releases)) // 2
    assert [(label(case), found) for case in cases if (found := differences(case)).keys() & STATE] == []


# ---- the table of changes


STATE = {"activations", "weights", "trainable"}


@pytest.mark.parametrize("change", CHANGES, ids=lambda c: f"{c.flag}-{c.library}-{c.since}-{'-'.join(c.families)}")
def test_a_change_is_a_fact_about_a_known_flag(change: object) -> None:
    """Every row names a flag, a library, a release in the known range, and takes hold right before that release."""
    from dataclasses import replace

    row = change
    assert row.flag in Behaviour.__dataclass_fields__  # type: ignore[attr-defined]
    assert row.library in LIBRARIES  # type: ignore[attr-defined]
    family = row.families[0] if row.families else ""  # type: ignore[attr-defined]
    major, minor, _ = parse(row.since)  # type: ignore[attr-defined]
    earlier = f"{major}.{minor - 1}" if minor else f"{major - 1}.99"
    before = behaviour(replace(REFERENCE, **{row.library: earlier}), family)  # type: ignore[attr-defined]
    assert getattr(before, row.flag) == row.before  # type: ignore[attr-defined]


def test_the_reference_releases_behave_as_the_programs_default() -> None:
    """Requests without versions are answered for the reference releases, stated or not."""
    assert behaviour(REFERENCE) == Behaviour()
    assert versions_of({}) == REFERENCE
    stated = {name: getattr(REFERENCE, name) for name in LIBRARIES}
    request = Request(model="llama-2-7b")
    assert estimate(request.model_copy(update=stated)).memory == estimate(request).memory


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("text", ["0.0.1", "99.1", "newest", "4,46", ""])
def test_an_unknown_release_is_refused_in_one_line(library: str, text: str) -> None:
    """A release out of the known range, or no release at all, is named with what is allowed."""
    with pytest.raises(BadInput) as refused:
        versions_of({library: text})
    assert f"--{library}" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_what_is_installed_is_brought_into_the_known_range() -> None:
    """A newer release counts as the newest known one, an older one as the oldest."""
    found = installed_versions({"transformers": "6.1.0", "peft": "0.1", "torch": "2.7.1+cu126", "accelerate": "1"})
    assert found == {"transformers": REFERENCE.transformers, "peft": OLDEST["peft"], "torch": "2.7.1+cu126"}


def test_a_version_without_its_last_part_is_the_last_such_release() -> None:
    """4.46 means the last 4.46 there was."""
    assert parse("4.46") > parse("4.46.3")
    assert parse("v4.46.3.dev0") == (4, 46, 3)


@pytest.mark.parametrize("model", ["mistralai/Mixtral-8x7B-v0.1", "Qwen/Qwen1.5-MoE-A2.7B", "Qwen/Qwen3-30B-A3B"])
def test_experts_of_transformers_4_are_linears_that_a_four_bit_load_packs(model: str) -> None:
    """The same weights either way; one tensor a layer stays dense, linears take about half a byte a weight."""
    new, old = (
        estimate(Request(model=model, method="qlora", targets="attention", transformers=release))
        for release in ("5.0", "4.57")
    )
    assert old.model == new.model
    assert old.memory.resident.weights < 0.75 * old.model.num_params
    assert new.memory.resident.weights > 2 * new.model.num_params


def test_deepseek_under_transformers_4_says_what_it_is_taken_for() -> None:
    """A family whose older releases were not followed is answered, with a note."""
    report = estimate(Request(model="deepseek-ai/DeepSeek-V2-Lite", method="qlora", transformers="4.57"))
    assert any("not followed" in note for note in report.notes)
