"""Serving one base with many adapters: what is held where, how fast tokens come, and what a tenant costs.

`options` says what is asked beside a model and a method, `answers` what is answered; `service.serve` is the way
from one to the other: `adapters` (what one adapter takes), `device` (what a GPU holds, and how much more it could),
`speed` (seconds of a prompt and of a token), `money` (against a copy of the model for each tenant), `notes`.
"""
