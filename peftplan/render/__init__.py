"""Reports for people: an answer becomes blocks, and blocks become a rich screen, plain text, Markdown or CSV."""
