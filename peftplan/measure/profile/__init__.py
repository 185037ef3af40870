"""The profile: real training steps on the local GPU, or tiny ones on the CPU, measured and weighed.

`process` runs a child that imports torch; what it measures becomes a record (`figures`) and is laid beside a
prediction (`report`) without torch.
"""
