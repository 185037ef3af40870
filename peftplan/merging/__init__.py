"""After training: what merging an adapter into its base takes, and what lies on disk.

`options` says what is asked beside a model and a method, `answers` what is answered; `service.merge` is the way
from one to the other: `ways` (which there are, and what each holds), `seconds` (what they move, at which rates),
`stored` (files of a task and of many).
"""
