"""Shared fixtures. Threads are fixed, since results are bit-identical only for the same number."""

import os

import pytest

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")  # bitsandbytes compiles its fallback for odd sizes: seconds each


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    """A model folder with a trained-looking head, to be read only."""
    from tests.tiny_model import make_folder

    return make_folder(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def tiny_encoder_folder(tmp_path_factory):
    """The same without a span head, as pretrained encoders come; to be read only."""
    from tests.tiny_model import make_folder

    return make_folder(tmp_path_factory.mktemp("tiny-encoder"), with_head=False)


@pytest.fixture(scope="session")
def even_place(tmp_path_factory):
    """(folder of a BERT of sizes that transformers' fast paths like, data file); to be read only."""
    from tests.tiny_model import make_folder
    from tests.tiny_run import write_squad

    folder = tmp_path_factory.mktemp("even")
    make_folder(folder / "model", hidden_size=32, num_attention_heads=4, intermediate_size=64)
    return folder / "model", write_squad(folder / "train.json", range(25), with_null=False)


@pytest.fixture
def masks_of_torch(monkeypatch):
    """Dropout draws its masks as torch's own does, for comparisons with a reference from one seed."""
    import torch
    from torch.nn.functional import dropout

    import model.attention
    import model.dropout

    def kept(like, probability):
        return dropout(torch.ones_like(like), probability)

    def dropped(like, probability):
        return -kept(like, probability).eq(0).to(model.dropout.INTEGERS[like.element_size()])

    monkeypatch.setattr(model.dropout, "draw_kept", kept)
    monkeypatch.setattr(model.attention, "draw_dropped", dropped)


@pytest.fixture(scope="module")
def place(tmp_path_factory, tiny_encoder_folder):
    """(a folder with train.json and dev.json of the module's own, the encoder to train)."""
    from tests.tiny_run import write_squad

    folder = tmp_path_factory.mktemp("place")
    write_squad(folder / "train.json", range(9))
    write_squad(folder / "dev.json", range(9, 13))
    return folder, tiny_encoder_folder


@pytest.fixture(scope="module")
def decoder_place(place):
    """(the folder of `place`, a decoder's folder in it)."""
    from tests.tiny_decoder import make_folder

    folder, _ = place
    return folder, make_folder(folder / "llama", initializer_range=0.1)


@pytest.fixture(scope="module")
def adapted_reader(tiny_folder, tmp_path_factory):
    """A Reader with the adapters `yes`, which is in use, and `no`."""
    from answering.reader import Reader
    from answering.settings import ReaderSettings
    from data.windows import WindowSettings
    from tests.tiny_adapters import make_adapters

    reader = Reader.load(tiny_folder, settings=ReaderSettings(WindowSettings(57, 13)), device="cpu", precision="fp32")
    for name, folder in zip(("yes", "no"), make_adapters(tmp_path_factory.mktemp("adapters"), tiny_folder), strict=True):
        reader.load_adapter(folder, name)
    reader.set_adapter("yes")
    return reader
