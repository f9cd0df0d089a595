"""The public classes of BareQA, for people who import: `from bareqa import Reader`."""

from common.errors import InputError
from data.decode import DecodeSettings, Prediction, Span
from data.examples import Answer, Dataset, Example
from data.readers import read_dataset
from data.tokenizer import load_tokenizer
from data.windows import WindowSet, WindowSettings
from metrics import evaluate_v1, evaluate_v2
from model.bert import BertConfig, BertForQuestionAnswering
from model.source import resolve_model
from model.weights import load_model, save_weights
from reader import Reader, ReaderSettings

__all__ = [
    "Answer",
    "BertConfig",
    "BertForQuestionAnswering",
    "Dataset",
    "DecodeSettings",
    "Example",
    "InputError",
    "Prediction",
    "Reader",
    "ReaderSettings",
    "Span",
    "WindowSet",
    "WindowSettings",
    "evaluate_v1",
    "evaluate_v2",
    "load_model",
    "load_tokenizer",
    "read_dataset",
    "resolve_model",
    "save_weights",
]
