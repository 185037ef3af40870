"""Buffers that CUDA kernels take from torch's allocator and give back: sizes as functions of shapes, and a table.

A kernel's buffers are alive together, while its results are; `table` says of each entry where it was read.
Both the closed form and the trace ask these functions, so that they cannot disagree.
"""
