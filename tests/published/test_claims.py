"""Figures that circulate: each is worked out, and the page of them is what the program says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from statistics import median

import pytest

from peftplan.catalog.claims import Claim, all_claims
from peftplan.claims import CheckedClaim, check_claim, check_claims, value_of
from peftplan.render.claims import claims_blocks
from peftplan.render.markdown import markdown

PAGE = Path(__file__).parents[2] / "profiles" / "CLAIMS.md"
# Facts of the workplace of whoever builds peftplan, where they are at hand: the list that the claims come from.
LISTED = Path(__file__).parents[3] / "shared" / "facts" / "quoted_claims.yaml"


@pytest.fixture(scope="module")
def checked() -> dict[str, CheckedClaim]:
    """Every claim, worked out once."""
    return {claim.id: claim for claim in check_claims().claims}


@pytest.mark.parametrize("claim", all_claims(), ids=lambda claim: claim.id)
def test_a_claim_is_what_peftplan_finds_it_to_be(claim: Claim, checked: dict[str, CheckedClaim]) -> None:
    """What holds is near in every figure, what holds in part in some, and what does not is far off in one."""
    off = [abs(figure.difference_frac or 0.0) for figure in checked[claim.id].figures]
    assert off
    if claim.finding == "holds":
        assert median(off) <= 0.1
        assert max(off) <= 0.3
    elif claim.finding == "roughly":
        assert min(off) <= 0.1
        assert max(off) > 0.05
    else:
        assert max(off) > 0.1


def test_every_figure_told_has_a_formula_and_a_reason(checked: dict[str, CheckedClaim]) -> None:
    """No claim is left without a figure of peftplan's and a sentence on it."""
    for claim in checked.values():
        assert claim.reason.endswith(".")
        assert all(figure.claimed_low is not None for figure in claim.figures)
        assert all(figure.predicted > 0 for figure in (*claim.figures, *claim.also))


def test_the_page_is_what_the_program_says(
    request: pytest.FixtureRequest, checked: dict[str, CheckedClaim]
) -> None:
    """The page on file is the one that `explain --claims --markdown` prints (--regenerate-golden renews it)."""
    shown = markdown(claims_blocks(check_claims())).replace("## ", "# ", 1)
    if request.config.getoption("--regenerate-golden"):
        PAGE.write_text(shown, encoding="utf-8")
    assert PAGE.read_text(encoding="utf-8") == shown
    assert all(f"| {name}: ".replace("_", "\\_") in shown for name in checked)


def test_every_listed_claim_is_checked() -> None:
    """Each entry of the list is a claim of the catalogue, with every figure that it tells."""
    if not LISTED.is_file():
        pytest.skip("the list of claims is not at hand")
    from ruamel.yaml import YAML

    known = {claim.id: claim for claim in all_claims()}
    listed = YAML(typ="safe").load(LISTED.read_text(encoding="utf-8"))
    assert len(listed) == len(known)
    for entry in listed:
        claim = known[entry["id"]]
        assert claim.run == entry["run"]
        told = [tuple(value) if isinstance(value, list) else value for value in entry["claim"].values()]
        assert [figure.claimed for figure in claim.figures] == told


@pytest.mark.parametrize(
    ("formula", "value"),
    [("2 * run.params", 14.0), ("run.params - 3", 4.0), ("(run.params + 1) / run.params", 8 / 7)],
)
def test_formulas_are_arithmetic(formula: str, value: float) -> None:
    """Numbers, figures of runs and the four operations."""
    assert value_of(formula, {"run": {"params": 7.0}}) == pytest.approx(value)


@pytest.mark.parametrize("formula", ["open('x')", "run.params ** 9", "[1]", "run", "__import__('os').name"])
def test_nothing_else_is_a_formula(formula: str) -> None:
    """Whatever is not arithmetic is refused, not run."""
    with pytest.raises(ValueError, match="no formula of a claim"):
        value_of(formula, {"run": {"params": 7.0}})


def test_a_claim_is_reproduced_from_the_command_line(run: Callable[..., object]) -> None:
    """`explain --claim` tells the claim, the figure, the formula with its numbers, and the runs behind it."""
    done = run("explain", "--claim", "LLAMA_7B_all-linear-r16", "--plain")
    assert done.status == 0
    assert "0.59 %" in done.out
    assert "39,976,960 / 6,738,415,616" in done.out
    assert "peftplan explain llama-7b --rank 16" in done.out
    assert (
        run("explain", "--claim", "lora-fa-halves", "--json").answer["claims"][0]["figures"][0]["predicted"] == 0.5
    )


@pytest.mark.parametrize(
    ("words", "status", "told"),
    [
        (("--claim", "lora-70b-11gb"), 4, "nearest: lora-70b-10gb"),
        (("llama-7b", "--claims"), 2, "MODEL and --claim exclude each other"),
        (("--claim", "lora-fa-halves", "--rank", "4"), 2, "--rank and --claim exclude each other"),
        ((), 2, "MODEL is missing"),
    ],
)
def test_what_cannot_be_explained_says_why(
    run: Callable[..., object], words: tuple[str, ...], status: int, told: str
) -> None:
    """An unknown claim names the nearest; a claim brings its own run along."""
    done = run("explain", *words)
    assert done.status == status
    assert told in done.err
    assert done.err.count("\n") == 1


def test_one_claim_is_worked_out_alone() -> None:
    """A claim of a single matrix asks for no model at all."""
    claim = next(claim for claim in all_claims() if claim.id == "lora-matrix-4096-r16")
    figures = check_claim(claim).figures
    assert [figure.predicted for figure in figures] == [131072, 0.0078125]
