"""Looking into a reader at work: functions that compute and print nothing, and commands under `python -m inside.…`.

Everything runs the model code that trains and answers, through hooks that are gone afterwards or through the eager
attention; where nobody looks, nothing is slower.
"""
