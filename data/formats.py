"""Reads any supported file into a checked tree (data/documents.py).

Formats are told apart by content, not by name:

    {"data": [articles]} or [articles]     nested SQuAD v1.1 / v2.0
    {"data": [rows]} or [rows]             flat JSON, one question a row
    one JSON object a line                 JSONL of rows (or of articles)
    a header naming context and question   CSV

A flat row becomes a question of the tree; neighbouring rows with an equal context share a paragraph.
"""

import ast
import csv
import io
import json
import re

from common.files import parse_json, read_bytes, read_text
from data.documents import Article, Document, Paragraph, Question, Reference, Source, at, counted, shown

QUESTION_KEYS = {"id", "question", "answers", "answer", "answer_start", "answer_end", "is_impossible"}
ROW_KEYS = QUESTION_KEYS | {"title", "context"}


def read_document(path):
    """Read one file of any supported format. InputError on anything that is not such a data set."""
    source = Source(path)
    text = read_text(path)
    records, extra = find_records(source, text)
    first = records[0][1] if records else {}
    articles = read_nested(source, records) if "paragraphs" in first else read_flat(source, records)
    if not source.questions:
        source.refuse("", "holds no questions")
    # A pipe cannot be read a second time, only a real file is asked for its mark.
    if source.path.is_file() and read_bytes(path).startswith(b"\xef\xbb\xbf"):
        source.odd["bom"] = 1
    source.odd["crlf"] = text.count("\r\n")
    return Document(source.path, articles, list_notices(source), extra)


def find_records(source, text):
    """Return the (place, object) pairs at the top of the file, and what else its root holds."""
    if not text.lstrip().startswith(("{", "[")) and text.strip():
        return read_csv(source, text), {}
    if is_jsonl(text):
        records = [
            (f"line {number}", parse_json(line, source.path, number))
            for number, line in enumerate(text.split("\n"), 1) if line.strip()
        ]
        return [(where, source.check(row, dict, where)) for where, row in records], {}
    root = parse_json(text, source.path)
    if isinstance(root, list):
        return [(f"[{i}]", source.check(row, dict, f"[{i}]")) for i, row in enumerate(root)], {}
    if "data" in root:
        records = source.objects(root, "data", "")
        if records and "paragraphs" in records[0][1] and "version" not in root:
            source.odd["version"] = 1
        return records, source.extra(root, {"data", "version"})
    if "question" in root or "paragraphs" in root:
        return [("line 1", root)], {}
    source.refuse("", f'expected a list of articles under "data", found {shown_keys(root)}')


def shown_keys(row):
    return f'the keys {shown(", ".join(row))}' if row else "an empty object"


def is_jsonl(text):
    """Whether the first line is a whole JSON object and more lines follow."""
    first, _, rest = text.lstrip().partition("\n")
    if not rest.strip():
        return False
    try:
        return isinstance(json.loads(first), dict)
    except (ValueError, RecursionError):
        return False


def read_nested(source, records):
    articles = []
    for where, row in records:
        title = source.optional(row, "title", str, where) or ""
        article = Article(title, extra=source.extra(row, {"title", "paragraphs"}))
        for place, inner in source.objects(row, "paragraphs", where):
            context = source.field(inner, "context", str, place)
            paragraph = Paragraph(place, context, extra=source.extra(inner, {"context", "qas"}))
            for spot, qa in source.objects(inner, "qas", place):
                paragraph.questions.append(read_question(source, qa, spot, QUESTION_KEYS))
            article.paragraphs.append(paragraph)
        articles.append(article)
    return articles


def read_flat(source, records):
    articles = []
    for where, row in records:
        if "question" not in row and "context" not in row:
            keys = shown_keys(row)
            source.refuse(where, f'expected "paragraphs", or "context" and "question", found {keys}')
        context = source.field(row, "context", str, where)
        title = source.optional(row, "title", str, where) or ""
        if not articles or articles[-1].title != title:
            articles.append(Article(title))
        paragraphs = articles[-1].paragraphs
        if not paragraphs or paragraphs[-1].context != context:
            paragraphs.append(Paragraph(where, context))
        paragraphs[-1].questions.append(read_question(source, row, where, ROW_KEYS))
    return articles


def read_question(source, row, where, known):
    source.questions += 1
    text = source.field(row, "question", str, where)
    file_id = row.get("id")
    if file_id in (None, ""):
        source.odd["made id"] += 1
        file_id, name = None, f"{source.path.stem}:{source.questions}"
    elif type(file_id) is int:
        source.odd["integer id"] += 1
        name = str(file_id)
    elif type(file_id) is str:
        name = source.field(row, "id", str, where)
    else:
        source.refuse(at(where, "id"), f"expected text or a whole number, found {shown(file_id)}")
    impossible = source.optional(row, "is_impossible", bool, where)
    references = read_references(source, row, where)
    if references is None and impossible:
        references = []
    question = Question(where, name, file_id, text, references, impossible, source.extra(row, known))
    count_oddities(source.odd, question)
    return question


def read_references(source, row, where):
    """Every shape of references: a list of objects, an object of lists, one object, or text and start."""
    key = "answers" if row.get("answers") is not None else "answer"
    value, place = row.get(key), at(where, key)
    if value is None:
        return None
    if key == "answer" and isinstance(value, str):
        extra = {"answer_end": row["answer_end"]} if "answer_end" in row else {}
        start = source.field(row, "answer_start", int, where)
        return [Reference(place, source.check(value, str, place), start, extra)]
    if isinstance(value, dict) and isinstance(value.get("text"), list):
        return read_columns(source, value, place)
    if isinstance(value, dict):
        return [read_reference(source, value, place)]
    return [read_reference(source, item, spot) for spot, item in source.objects(row, key, where)]


def read_reference(source, row, where):
    text = source.field(row, "text", str, where)
    start = source.field(row, "answer_start", int, where)
    return Reference(where, text, start, source.extra(row, {"text", "answer_start"}))


def read_columns(source, value, place):
    texts = value["text"]
    starts = source.field(value, "answer_start", list, place)
    if len(texts) != len(starts):
        source.refuse(place, f"{len(texts)} in \"text\" but {len(starts)} in \"answer_start\"")
    rest = source.extra(value, {"text", "answer_start"})
    parallel = {k: v for k, v in rest.items() if isinstance(v, list) and len(v) == len(texts)}
    return [
        Reference(
            f"{place}.text[{i}]",
            source.check(text, str, f"{place}.text[{i}]"),
            source.check(start, int, f"{place}.answer_start[{i}]"),
            {key: column[i] for key, column in parallel.items()},
        )
        for i, (text, start) in enumerate(zip(texts, starts))
    ]


def count_oddities(odd, question):
    references, impossible = question.references, question.is_impossible
    odd["no answers" if references is None else "answers"] += 1
    odd["two references"] += len(references or ()) > 1
    odd["no is_impossible" if impossible is None else "is_impossible"] += 1
    odd["empty denial"] += question.denies_answers
    odd["impossible yet answered"] += bool(impossible and references and not question.denies_answers)
    odd["possible yet unanswered"] += impossible is False and references == []


def list_notices(source):
    """One sentence for each kind of oddity that occurred, in a fixed order."""
    odd, questions = source.odd, lambda kind: counted(source.odd[kind], "question")
    unread = ", ".join(f"{key or 'nameless'} ({number:,})" for key, number in source.unread.items())
    sentences = [
        (odd["bom"], "starts with a byte order mark, left out"),
        (odd["crlf"], "lines end in CR LF"),
        (odd["version"], 'no "version"'),
        (odd["integer id"], f"{counted(odd['integer id'], 'integer id')} read as text"),
        (odd["made id"], f"{questions('made id')} without an id got one such as {source.path.stem}:1"),
        (odd["two references"], f"{questions('two references')} with two or more references"),
        (odd["no answers"] and odd["answers"], f"{questions('no answers')} without references"),
        (odd["no is_impossible"] and odd["is_impossible"],
         f"{questions('no is_impossible')} without is_impossible, which others have"),
        (odd["impossible yet answered"],
         f"{questions('impossible yet answered')} with is_impossible true beside answers; the answers count"),
        (odd["empty denial"],
         f"{questions('empty denial')} with is_impossible true and only an empty answer; unanswerable"),
        (odd["possible yet unanswered"],
         f"{questions('possible yet unanswered')} with is_impossible false and no answers; unanswerable"),
        (odd["blank answer"],
         f"{questions('blank answer')} with a blank answer among answered ones; unanswerable"),
        (unread, f"extra keys left unread: {unread}"),
    ]
    return [f"{source.path}: {sentence}" for occurred, sentence in sentences if occurred]


def read_csv(source, text):
    """CSV rows (separated by comma, semicolon or tab) as flat rows; a place is the row's first line."""
    header_line = text.lstrip("\r\n").partition("\n")[0]
    fits = [mark for mark in ",;\t" if {"context", "question"} <= set(split_header(header_line, mark))]
    if not fits:
        source.refuse("", "expected JSON, JSONL, or CSV whose header names context and question")
    old_limit = csv.field_size_limit(len(text) + 1)  # the default refuses contexts of 131,072 characters
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=fits[0], strict=True)
        return read_csv_rows(source, reader)
    except csv.Error as error:
        source.refuse(f"line {reader.line_num}", f"not CSV: {error}")
    finally:
        csv.field_size_limit(old_limit)


def split_header(line, mark):
    return [name.strip() for name in next(csv.reader([line.rstrip("\r")], delimiter=mark), [])]


def read_csv_rows(source, reader):
    header, records, line = None, [], 1
    for cells in reader:
        where, line = f"line {line}", reader.line_num + 1
        if not cells:
            continue
        if header is None:
            header = [name.strip() for name in cells]
            doubled = [name for name in ROW_KEYS if header.count(name) > 1]
            if doubled:
                source.refuse(where, f'two columns are called "{min(doubled)}"')
        elif len(cells) != len(header):
            source.refuse(where, f"{counted(len(cells), 'field')}, but the header has {len(header)}")
        else:
            records.append((where, convert_cells(source, dict(zip(header, cells)), where)))
    blank = [row for _, row in records if row.get("answers") is row.get("answer") is None]
    # A blank cell in a file of labelled questions is a label; where all are blank, none was given.
    if len(blank) < len(records):
        source.odd["blank answer"] = sum(not row["is_impossible"] for row in blank)
        for row in blank:
            row["answers"] = []
    return records


def convert_cells(source, row, where):
    """Turn a row of text cells into a flat row with the types that JSON would have."""
    impossible = row.get("is_impossible", "").strip().lower()
    if impossible not in ("", "true", "false", "1", "0"):
        source.refuse(at(where, "is_impossible"), f"expected true or false, found {shown(impossible)}")
    row["is_impossible"] = impossible in ("true", "1") if impossible else None
    if "text" in row and "answer_start" in row and "answer" not in row:
        row["answer"] = row.pop("text")
    for key in ("answers", "answer"):
        cell = row.get(key, "").strip()
        if not cell:
            row[key] = None
        elif key == "answers" or "answer_start" not in row:
            row[key] = convert_literal(source, cell, at(where, key))
    if "answer_start" in row:
        start = row["answer_start"].strip()
        # "12.0" is what spreadsheets and data frames make of 12 when other rows are blank
        if re.fullmatch(r"-?[0-9]{1,15}(\.0+)?", start):
            row["answer_start"] = int(start.partition(".")[0])
        elif start and row["answer"] is not None:
            source.refuse(at(where, "answer_start"), f"expected a whole number, found {shown(start)}")
        elif not start:
            del row["answer_start"]
    return row


def convert_literal(source, cell, where):
    """The value of a cell that holds JSON, or the same written by Python with single quotes."""
    for parse in (json.loads, ast.literal_eval):
        try:
            return json.loads(json.dumps(parse(cell)))  # tuples become lists, and bytes or sets are refused
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            continue
    source.refuse(
        where, f'expected {{"text": ["x"], "answer_start": [3]}}, or text beside a column answer_start, '
        f"found {shown(cell)}"
    )
