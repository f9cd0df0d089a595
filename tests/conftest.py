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


@pytest.fixture(scope="module")
def place(tmp_path_factory, tiny_encoder_folder):
    """(a folder with train.json and dev.json of the module's own, the encoder to train)."""
    from tests.tiny_run import write_squad

    folder = tmp_path_factory.mktemp("place")
    write_squad(folder / "train.json", range(9))
    write_squad(folder / "dev.json", range(9, 13))
    return folder, tiny_encoder_folder
