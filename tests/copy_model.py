"""A reader built by hand, whose right answer is known: it says the word that follows the question's word in the text.

Head 0.1 copies: each token looks at the one before it and writes that word into a place of its own. Head 1.2 marks:
each token looks for the word it has been told of among the question's words, and is marked where it finds it (else
it looks at [CLS], which says nothing). The span head reads the mark; and, a little, it likes the word "lima", which
is what the lens must show as beaten. All other weights are zero: every other head and feed-forward half says nothing.

    question:  bob          text:  lima ada paris bob rome cleo oslo          answer:  rome
"""

import torch

from data.tokenizer import load_tokenizer, save_tokenizer
from data.windows import WindowSettings
from model.bert import BertConfig, BertForQuestionAnswering
from model.saving import save_weights
from answering.reader import Reader, ReaderSettings

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "ada", "bob", "cleo", "dan", "lima", "oslo", "paris", "rome"]
V, P, H, K, LAYERS = len(WORDS), 17, 3, 19, 3
D = H * K
# which of the D places says what: this word, the word before, the position, [CLS] or question, and the mark
WORD, BEFORE, POSITION, ASKED, MARK = 0, V, 2 * V, 2 * V + P, 2 * V + P + 1
COPY, MARKING, FAVOURITE = (0, 1), (1, 2), "lima"
SHARP = 6.0  # soft enough for gradients to flow, sharp enough to be sure
CONTEXT, QUESTION = "lima ada paris bob rome cleo oslo", "bob"


def config():
    return BertConfig(
        vocab_size=V, hidden_size=D, num_hidden_layers=LAYERS, num_attention_heads=H, intermediate_size=5,
        max_position_embeddings=P, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )


@torch.no_grad()
def copy_model():
    """The model, with every weight written here."""
    model = BertForQuestionAnswering(config())
    for name, parameter in model.named_parameters():
        parameter.fill_(1.0 if name.endswith("LayerNorm.weight") else 0.0)
    table = model.bert.embeddings
    table.word_embeddings.weight[:, WORD : WORD + V] = torch.eye(V)
    table.word_embeddings.weight[0] = 0.0  # [PAD] is no word
    table.position_embeddings.weight[:, POSITION : POSITION + P] = torch.eye(P)
    table.token_type_embeddings.weight[0, ASKED] = 1.0
    write_copying(model.bert.encoder.layer[COPY[0]].attention, COPY[1])
    write_marking(model.bert.encoder.layer[MARKING[0]].attention, MARKING[1])
    model.qa_outputs.weight[:, MARK] = 4.0
    model.qa_outputs.weight[:, WORD + WORDS.index(FAVOURITE)] = 0.5
    return model


def write_copying(attention, head):
    """query: the position before; key: the position; value: the word, which goes to BEFORE."""
    rows = torch.arange(P - 1) + head * K
    attention.self.query.weight[rows, POSITION + 1 + torch.arange(P - 1)] = SHARP  # position p asks for p - 1
    attention.self.key.weight[rows, POSITION + torch.arange(P - 1)] = 1.0
    words = torch.arange(V) + head * K
    attention.self.value.weight[words, WORD + torch.arange(V)] = 1.0
    attention.output.dense.weight[BEFORE + torch.arange(V), words] = 1.0


def write_marking(attention, head):
    """query: the word before, and asked for; key: the word, and whether it is asked; value: whether it is a name."""
    words = torch.arange(V) + head * K
    attention.self.query.weight[words, BEFORE + torch.arange(V)] = SHARP
    attention.self.key.weight[words, WORD + torch.arange(V)] = 1.0
    constant = head * K + V
    attention.self.query.bias[constant] = SHARP
    attention.self.key.weight[constant, ASKED] = 8.0  # LayerNorm makes every 1 about 4, so a fitting word gives 16,
    attention.self.key.weight[constant, WORD + WORDS.index("[CLS]")] = 2.0  # being asked 32, and [CLS] 8 more
    attention.self.value.weight[constant, WORD + 4 : WORD + V] = 1.0  # a word and no special
    attention.output.dense.weight[MARK, constant] = 3.0


def copy_reader(folder, **settings):
    """A Reader of the model, after a way through a folder's files."""
    folder.mkdir(exist_ok=True)
    save_weights(copy_model(), folder)
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    save_tokenizer(load_tokenizer(folder), folder)
    (folder / "vocab.txt").unlink()
    windows = WindowSettings(length=P, overlap=4)
    return Reader.load(folder, settings=ReaderSettings(windows, **settings), device="cpu", precision="fp32")
