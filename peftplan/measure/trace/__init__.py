"""The trace: two real training steps of the installed libraries on fake tensors, without a GPU and without weights.

`process` runs a child that imports torch; what it records (`recording`) is replayed and read without torch.
"""
