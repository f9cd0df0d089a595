"""The public classes of BareQA, for people who import: `from bareqa import Reader`."""

from common.errors import InputError
from data.decode import DecodeSettings, Prediction, Span
from data.examples import Answer, Dataset, Example
from data.prompts import PromptSettings
from data.readers import read_dataset
from data.tokenizer import load_tokenizer
from data.windows import WindowSet, WindowSettings
from metrics import evaluate_v1, evaluate_v2
from model.adapters import load_adapter, save_adapter
from model.bert import BertConfig, BertForQuestionAnswering
from model.combining import combine
from model.llama import LlamaConfig, LlamaForCausalLM
from model.llama_span import LlamaForQuestionAnswering
from model.lora import LoraConfig, add_lora, remove_adapter, set_adapter, switch_of
from model.merging import merge, merged_model, unmerge
from model.quant import FourBit, quantise
from model.source import resolve_model
from model.saving import save_weights
from model.weights import load_model
from answering.pipeline import QuestionAnsweringPipeline, pipeline
from answering.reader import Reader
from answering.settings import Decoding, ReaderSettings, SpeakerSettings

__all__ = [
    "Answer",
    "BertConfig",
    "BertForQuestionAnswering",
    "Dataset",
    "Decoding",
    "DecodeSettings",
    "Example",
    "FourBit",
    "InputError",
    "LlamaConfig",
    "LlamaForCausalLM",
    "LlamaForQuestionAnswering",
    "LoraConfig",
    "Prediction",
    "PromptSettings",
    "QuestionAnsweringPipeline",
    "Reader",
    "ReaderSettings",
    "Span",
    "SpeakerSettings",
    "WindowSet",
    "WindowSettings",
    "add_lora",
    "combine",
    "evaluate_v1",
    "evaluate_v2",
    "load_adapter",
    "load_model",
    "load_tokenizer",
    "merge",
    "merged_model",
    "pipeline",
    "quantise",
    "read_dataset",
    "remove_adapter",
    "resolve_model",
    "save_adapter",
    "save_weights",
    "set_adapter",
    "switch_of",
    "unmerge",
]
