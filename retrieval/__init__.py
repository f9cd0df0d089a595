"""Answers from many documents: files to passages, passages by relevance, the best of them read."""
