"""Advice that bears on a run, as notes of their own."""

from __future__ import annotations

from peftplan.guidance import as_line, guidance_for
from peftplan.render.blocks import Notes
from peftplan.report import Report

TITLE = "Guidance: what others report, with its evidence; no figure rests on it"


def guidance_block(report: Report) -> Notes:
    """Every record that bears on the run."""
    found = guidance_for(report.request, report.model.num_params)
    return Notes(TITLE, tuple(as_line(record) for record in found) or ("nothing on record bears on such a run",))
