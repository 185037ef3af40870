"""What a run leaves on disk, for one task and for many: adapter, training checkpoint, merged model, base.

A training checkpoint holds what goes on from it: what trains and what the optimizer keeps of it, as tensors. The
scheduler, the random state and the trainer's log are a few kilobytes beside them and are not counted.
Source: transformers-trainer-checkpoint.
"""

from __future__ import annotations

from peftplan.memory.resident import tally_resident
from peftplan.merging import answers
from peftplan.merging.ways import adapted, as_loaded, checkpoint
from peftplan.resolve import Plan


def on_disk(plan: Plan, tasks: int, merged_bytes: int | None) -> answers.OnDisk:
    """Files of a task, and of `tasks`; `merged_bytes`: a merged model's, where the method has one."""
    own = adapted(plan, as_loaded(plan.method_spec, packed=False))
    frozen = plan.method.frozen_base
    base_bytes, _ = checkpoint(own.base)
    whole = sum(p.num_bytes() * n for _, p, n in own.model.parameters() if p.role == "weight")
    if not frozen or not own.adapter_bytes:
        files = [_stored("trained model", "its weights, as they train", base_bytes if frozen else whole, tasks)]
        first = files[0].bytes
    else:
        files = [_stored("adapter", "safetensors, header included", own.file_bytes, tasks)]
        first = own.file_bytes
    resident = tally_resident(own.model, plan.step)
    states = resident.optimizer_states.requested + resident.master_weights.requested
    files.append(
        _stored(
            "training checkpoint",
            f"the same and {plan.step.optimizer}'s states, to go on from",
            first + states,
            tasks,
        )
    )
    if merged_bytes is not None:
        files.append(_stored("merged model", "safetensors, in place of base and adapter", merged_bytes, tasks))
    if frozen and own.adapter_bytes:
        files.append(_stored("base", "one for all tasks", base_bytes, tasks, shared=True))
    kept = first * tasks + (base_bytes if frozen and own.adapter_bytes else 0)
    return answers.OnDisk.model_construct(
        tasks=tasks,
        files=tuple(files),
        kept_bytes=kept,
        copies_bytes=None if merged_bytes is None else merged_bytes * tasks,
    )


def _stored(name: str, what: str, num_bytes: int, tasks: int, shared: bool = False) -> answers.Stored:
    return answers.Stored.model_construct(
        name=name, what=what, bytes=num_bytes, tasks_bytes=num_bytes * (1 if shared else tasks), shared=shared
    )
