"""What a step computes and moves, and what that takes in seconds."""
