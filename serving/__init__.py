"""Answers over HTTP: a queue in front of a Reader, a REST API, dialects of others, a page."""
