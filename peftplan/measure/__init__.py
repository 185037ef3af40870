"""Measuring with the real libraries: the trace on fake tensors. torch is imported nowhere else."""
