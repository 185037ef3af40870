"""Each model's parameter count is what transformers builds from its config, to the unit.

The models are built whole on the meta device, which stores no numbers: the largest takes a
fraction of a second.
"""

from __future__ import annotations

import os

import pytest

from peftplan.catalog import ModelRecord, all_models

# Set before transformers is imported: no test asks the network for anything.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

if int(transformers.__version__.partition(".")[0]) < 5:
    pytest.skip(
        "the counts are those of transformers 5, which ties and names weights differently from 4",
        allow_module_level=True,
    )


def num_params_built(record: ModelRecord) -> int:
    """Parameters, each counted once, of what the config builds: of a vision-language one, its text tower."""
    settings = dict(record.config)
    if "text_config" in settings:
        text = dict(settings["text_config"])
        config = transformers.AutoConfig.for_model(text.pop("model_type"), **text)
        with torch.device("meta"):
            model = transformers.AutoModelForCausalLM.from_config(config)
    else:
        config = transformers.AutoConfig.for_model(settings.pop("model_type"), **settings)
        with torch.device("meta"):
            model = getattr(transformers, config.architectures[0])(config)
    model.tie_weights()
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("record", all_models(), ids=lambda record: record.id)
def test_the_count_is_what_transformers_builds(record: ModelRecord) -> None:
    """`num_params` equals the model's parameters, each counted once even where weights are tied."""
    assert num_params_built(record) == record.num_params
