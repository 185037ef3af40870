"""Reports for people: an answer becomes blocks, and these a rich screen, plain text, Markdown or CSV."""
