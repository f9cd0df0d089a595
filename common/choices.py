"""Words that command lines and parts share; here, since the parts that give them meaning are slow to import."""

PRECISIONS = ("auto", "fp32", "bf16", "fp16")
QUANTS = ("nf4", "fp4", "nf4-single", "fp4-single")  # single: absmax stays fp32, without double quantisation
METHODS = ("full", "head", "bitfit", "lora", "qlora", "prompt", "fusion")
DECODINGS = ("span", "greedy", "sample")  # answers bound to the text, the likeliest tokens, tokens drawn
CHAT_FORMATS = ("llama3", "tinyllama", "llama2")
ATTENTIONS = ("causal", "bidirectional")  # of a decoder with a span head
OPTIMIZERS = ("adamw", "adamw8bit", "paged-adamw8bit")
RANKINGS = ("both", "bm25", "vectors")  # of passages: reciprocal ranks of the other two, words, meaning
