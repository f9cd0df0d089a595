"""What infer.py is made of: options, the model it opens, one answer, a file of questions, the prompt."""
