"""Measurements that docs/results.md records; nothing here is needed to use BareQA."""
