"""What requests and answers look like; pydantic checks the ones and describes both in /openapi.json."""

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from data.documents import SURROGATE
from serving.chat import JOINT

MOST_FIELDS = 100


def whole_characters(text):
    """The text, unless it has half a surrogate pair: JSON can say that, and no answer could be sent in UTF-8."""
    if not text.isascii() and SURROGATE.search(text):
        raise PydanticCustomError("surrogate", "half of a surrogate pair (\\ud800 to \\udfff) is not a character")
    return text


Text = Annotated[str, AfterValidator(whole_characters)]

Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False, description="give up after this many seconds")]


class Strict(BaseModel):
    """A request: a field that is not known is a mistake, and types are not guessed."""

    model_config = ConfigDict(extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def few_fields(cls, values):
        """Each unknown field is an error of its own, and tens of thousands would keep everybody waiting."""
        if isinstance(values, dict) and len(values) > MOST_FIELDS:
            raise PydanticCustomError("many_fields", f"expected at most {MOST_FIELDS} fields")
        return values


class Lenient(BaseModel):
    """A request in another's dialect, with many fields that mean nothing to a reader."""

    model_config = ConfigDict(extra="ignore", strict=True)


class Pair(Strict):
    """A question about a text."""

    question: Text
    context: Text
    top_k: int = Field(5, ge=1, description="candidates to give, the best one included")
    adapter: str | None = Field(None, description="which adapter answers; none: the bare model")
    no_answer: bool | None = Field(None, description="whether that may be the answer; null: as the model was set up")


class QaRequest(Pair):
    deadline: Seconds | None = None


class BatchRequest(Strict):
    qa_pairs: Annotated[list[Pair], Field(fail_fast=True)] = Field(min_length=1)
    deadline: Seconds | None = None


class ExplainRequest(Strict):
    question: Text
    context: Text
    adapter: str | None = None
    deadline: Seconds | None = None


class AskRequest(Strict):
    question: Text
    top_k: int = Field(5, ge=1, description="answers to give")
    passages: int | None = Field(None, ge=1, le=50, description="passages to read; null: as the server was set up")
    adapter: str | None = None
    deadline: Seconds | None = None


class Candidate(BaseModel):
    """context[start:end] == text, in code points. score: its probability. window: the part of the text it is from."""

    text: str
    start: int
    end: int
    score: float
    window: int


class QaAnswer(BaseModel):
    """answer is "" when there is none, and start, end and window are null then; reason says why."""

    answer: str
    start: int | None
    end: int | None
    score: float
    window: int | None = None
    seconds: float
    reason: str | None = None
    null_probability: float | None = None
    windows: int
    runners_up: list[Candidate]


class BatchAnswer(BaseModel):
    answers: list[QaAnswer]
    seconds: float


class Stretch(BaseModel):
    """context[start:end] == text, in code points."""

    text: str
    start: int
    end: int


class ScoredStretch(Stretch):
    start_logit: float
    end_logit: float
    score: float = Field(description="their sum, less the length penalty")
    probability: float


class NullScore(BaseModel):
    score: float
    probability: float
    threshold: float | None = Field(description='odds above which "no answer" is said; null: it never is')
    odds: float | None = Field(description="the null's score less that of the best span")


class Window(BaseModel):
    """A part of the text: tokens first to last of it, code points start to end. null, best: scores; text: of the best."""

    number: int
    first: int
    last: int
    start: int
    end: int
    null: float
    best: float | None
    text: str


class Token(BaseModel):
    """A piece of the window that won; part: special, question or text. start, end: code points in that part."""

    token: str
    part: str
    start: int | None
    end: int | None


class LensLayer(BaseModel):
    """The span head on one hidden state, 0 for the embeddings': logits per token, and the best span it would say."""

    start: list[float]
    end: list[float]
    best: str
    score: float = Field(description="of the final answer here")
    rank: int | None
    null: float


class Lens(BaseModel):
    """appears: the hidden state from which on the answer is best; beaten: what was best before it."""

    appears: int
    beaten: str | None
    layers: list[LensLayer]


class Saliency(BaseModel):
    """Integrated gradients of the best span's score, per token; missing: score less baseline less their sum."""

    attributions: list[float]
    score: float
    baseline: float
    missing: float
    steps: int


class Attention(BaseModel):
    """data: base64 of zlib of bytes round(255 p): layer by layer, heads[layer] heads, size rows of size columns."""

    heads: list[int]
    size: int
    data: str


class Part(BaseModel):
    name: str
    parameters: int
    seconds: float | None


class Explanation(BaseModel):
    """Tokens, lens, saliency and attention are of the window that won, number `winner`; answer null: "no answer"."""

    question: str
    context: str
    answer: Stretch | None
    best: ScoredStretch
    n_best: list[ScoredStretch]
    null: NullScore
    windows: list[Window]
    winner: int
    length_penalty: float
    tokens: list[Token]
    lens: Lens
    saliency: Saliency
    attention: Attention
    parts: list[Part]


class Place(BaseModel):
    """An answer in a file: `start` and `end` count its characters, `line` its lines from 1."""

    answer: str
    file: str
    line: int
    start: int
    end: int
    score: float
    passage: str
    passage_start: int = Field(description="where the answer begins in the passage")


class AskAnswer(BaseModel):
    answers: list[Place]
    seconds: float


class Health(BaseModel):
    status: str


class Refusal(BaseModel):
    """Any answer that is not 2xx: one sentence."""

    error: str


class OpenAIError(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class OpenAIRefusal(BaseModel):
    """The same in OpenAI's form."""

    error: OpenAIError


class HuggingFaceInputs(Lenient):
    question: Text
    context: Text


class HuggingFaceParameters(Strict):
    top_k: int | None = Field(None, ge=1)
    handle_impossible_answer: bool | None = None


class HuggingFaceRequest(Lenient):
    inputs: HuggingFaceInputs
    parameters: HuggingFaceParameters | None = None


class HuggingFaceAnswer(BaseModel):
    score: float
    start: int
    end: int
    answer: str


class Message(Lenient):
    role: str
    content: Text | None = None


class GenerateRequest(Lenient):
    """Ollama's. Without a prompt it only asks whether the model is there, as `ollama run` does first."""

    model: str
    prompt: Text = ""
    system: Text | None = None
    stream: bool | None = None


class ChatRequest(Lenient):
    model: str
    messages: Annotated[list[Message], Field(fail_fast=True)] = []
    stream: bool | None = None


class ShowRequest(Lenient):
    model: str | None = None
    name: str | None = Field(None, description="what older clients send")


class TextPart(Lenient):
    type: str
    text: Text | None = None


class CompletionMessage(Lenient):
    role: str
    content: Text | Annotated[list[TextPart], Field(fail_fast=True)] | None = None

    def text(self):
        """The content as one text, its parts paragraphs; what is no text does not count."""
        if isinstance(self.content, list):
            return JOINT.join(part.text for part in self.content if part.type == "text" and part.text)
        return self.content or ""


class CompletionRequest(Lenient):
    model: str
    messages: Annotated[list[CompletionMessage], Field(fail_fast=True)]
    stream: bool | None = False
    n: int | None = Field(1, ge=1, le=1, description="more than one completion is not to be had")
