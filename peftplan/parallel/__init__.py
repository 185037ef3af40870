"""What several GPUs make of a step, as one of them sees it."""
