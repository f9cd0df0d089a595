"""The parts of the loop in train.py: precision, one step, schedule, checkpoints."""
