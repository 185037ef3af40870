"""Frozen facts about formats, modules, models and GPUs. Nothing here computes memory."""
