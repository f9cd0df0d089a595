"""What Ollama wants beside a decoder's merged weights."""

from answering.settings import SpeakerSettings
from answering.speaker import ends_of
from common.files import write_atomic
from data.chat import FORMATS, modelfile
from data.tokenizer import is_byte_level
from model.quant import FourBitLinear

PIECE_FILE = "tokenizer.model"  # SentencePiece's own file of a vocabulary


def is_importable(reader):
    """Whether a Reader's whole model is one that Ollama takes: it speaks, and its weights are not packed."""
    packed = any(isinstance(module, FourBitLinear) for module in reader.model.modules())
    return isinstance(reader.settings, SpeakerSettings) and not packed


def lacks_pieces(reader):
    """Whether its vocabulary is SentencePiece's and the file of that was not there.

    Of such a one Ollama reads PIECE_FILE alone; it takes tokenizer.json for GPT-2's kind, and every prompt comes out wrong.
    """
    return reader.piece_file is None and not is_byte_level(reader.tokenizer)


def save_for_ollama(reader, folder):
    """Write a Modelfile into the folder of a Reader's whole model, where what stands there is enough."""
    if not is_importable(reader):
        return
    if reader.piece_file is not None:
        write_atomic(folder / PIECE_FILE, reader.piece_file.read_bytes())
    if not lacks_pieces(reader):
        chat = FORMATS[reader.settings.chat]
        ends = sorted(ends_of(reader.model, reader.tokenizer.token_to_id(chat.end)))
        known = filter(None, map(reader.tokenizer.id_to_token, ends))
        write_atomic(folder / "Modelfile", modelfile(chat, reader.settings.prompts, known))
