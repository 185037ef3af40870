"""The what-if explorer: pages that put a request together, call the planner and draw what it answers."""
