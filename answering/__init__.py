"""Models that answer: question and text in, exact spans out."""
