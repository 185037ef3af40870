"""What was measured, by oneself or by others, and how well predictions agree with it.

Rows of published tables become requests by general rules on their columns (`mapping`), or are set aside with
a reason; records of one's own need no mapping. `scoring` predicts each and weighs it.
"""
