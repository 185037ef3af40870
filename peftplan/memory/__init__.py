"""The tape: one training step played over shapes, and what is alive at every moment of it."""
