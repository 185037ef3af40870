"""Where the numbers come from: papers and library files, cited by key.

A formula cites a key, or names the library file whose behaviour it mirrors; that file then stands in
`where` of an entry, with the version it was read in. Measurements and catalogue records carry their own source.
"""

from __future__ import annotations

from peftplan.sources.advice import ADVICE
from peftplan.sources.hugging_face import HUGGING_FACE
from peftplan.sources.kernels import KERNELS
from peftplan.sources.merging import MERGING
from peftplan.sources.methods import METHODS
from peftplan.sources.optimizers import OPTIMIZERS
from peftplan.sources.papers import PAPERS
from peftplan.sources.pytorch import PYTORCH
from peftplan.sources.quantizers import QUANTIZERS
from peftplan.sources.runs import RUNS
from peftplan.sources.source import Source

__all__ = ["SOURCES", "Source"]

SOURCES: dict[str, Source] = {
    **METHODS,
    **PAPERS,
    **PYTORCH,
    **HUGGING_FACE,
    **KERNELS,
    **QUANTIZERS,
    **OPTIMIZERS,
    **RUNS,
    **MERGING,
    **ADVICE,
}
