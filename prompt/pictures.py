"""Lines of text that show what the functions of inside/ computed."""

from data.documents import counted
from inside.case import QUESTION, TEXT
from inside.tokens import changes
from prompt.display import isolated, one_line

BARS = " ▁▂▃▄▅▆▇█"
SHOWN = 40  # characters of a candidate's text in a table


def short(text, style, width=SHOWN):
    """A candidate's text for a table: on one line, its middle left out when it is long."""
    text = one_line(text)
    if len(text) > width:
        text = f"{text[: width // 2]}…{text[-(width // 2 - 1) :]}"
    return isolated(text, style)


def said(answer, style):
    """The text of an answer, or "(no answer)"."""
    return "(no answer)" if answer is None else short(answer.text, style)


def heat_line(pieces, weights, style):
    """The pieces with a bar behind each, as high as its weight beside the greatest; runs of nothing become "…"."""
    top = max((abs(weight) for weight in weights), default=0.0) or 1.0
    parts = []
    for piece, weight in zip(pieces, weights, strict=True):
        bar = BARS[round(abs(weight) / top * (len(BARS) - 1))]
        if bar == " ":
            parts += [] if parts and parts[-1] == "…" else ["…"]
        else:
            parts.append(f"{one_line(piece.token)}{'-' if weight < 0 else ''}{bar}")
    return isolated(" ".join(parts), style)


def strongest(pieces, weights, style, count=5):
    """The pieces with the greatest weights, each with its number."""
    order = sorted(range(len(pieces)), key=lambda k: -abs(weights[k]))[:count]
    return "  ".join(f"{isolated(one_line(pieces[k].token), style)} {weights[k]:.3f}" for k in order)


def why_lines(seen, style, count=4, penalty=0.0):
    """/why. penalty: taken off end logits for each of an answer's tokens after its first, as the decoder does."""
    if penalty:
        yield f"end logits are less {penalty:g} for each of the answer's tokens after its first (--length-penalty)"
    best = seen.prediction.spans[0]
    yield (f"best span: {short(best.text, style)}  start {best.start_logit:.2f} + end {best.end_logit:.2f} "
           f"= {best.score:.2f}, from window {seen.winner}")
    for view in seen.windows:
        start, end = view.null
        yield (f"window {view.number}: tokens {view.first} to {view.last}, null {start:.2f} + {end:.2f} = "
               f"{start + end:.2f}{'; won' if view.number == seen.winner else ''}")
        for span in view.spans[:count]:
            yield (f"  {span.score:8.2f} = {span.start_logit:6.2f} + {span.end_logit:6.2f}  "
                   f"{100 * span.probability:5.1f} %  {short(span.text, style)}")
    null = sum(seen.prediction.null)
    if seen.threshold is None:
        yield f"the least null is window {seen.null_window}'s, {null:.2f}; this model never says \"no answer\""
        return
    odds = seen.prediction.null_odds
    verdict = "above, so there is no answer" if seen.answer is None else "not above, so the span is the answer"
    yield (f"the least null is window {seen.null_window}'s, {null:.2f}; less the best span {odds:.2f}, "
           f"threshold {seen.threshold:.2f}: {verdict}")


def lens_lines(seen, style):
    """/lens"""
    yield f"{'read after':12}{'best':>8}{'answer':>9}{'rank':>6}{'null':>9}  what the head would say"
    for one in seen.layers:
        name = f"block {one.layer - 1}" if one.layer else "embeddings"
        rank = "-" if one.rank is None else one.rank
        yield f"{name:12}{one.best.score:8.2f}{one.score:9.2f}{rank:>6}{one.null:9.2f}  {short(one.best.text, style)}"
    if seen.beaten is None:
        yield f"{short(seen.answer.text, style)} is best from the embeddings on"
        return
    yield (f"{short(seen.answer.text, style)} is best from block {seen.appears - 1} on; before it was "
           f"{short(seen.beaten.text, style)}")


def look_lines(seen, pieces, style):
    """/attn"""
    for name, weights in (("the answer looks at", seen.answer.tolist()), ("[CLS] looks at", seen.cls.tolist())):
        yield f"head {seen.layer}.{seen.head}, {name}: {strongest(pieces, weights, style)}"
        yield f"  {heat_line(pieces, weights, style)}"
    if seen.to_virtual > 0.0005:
        yield f"  the answer gives {seen.to_virtual:.3f} to virtual tokens, which are not shown"


def loss_lines(losses, case, style, count):
    """/heads"""
    yield f"{'without':>9}{'score lost':>12}  the answer then"
    for loss in losses[:count]:
        yield f"{str(loss.unit):>9}{loss.drop:12.2f}  {said(case.answer(loss.prediction), style)}"
    if len(losses) > count:
        yield f"… and {len(losses) - count} more; /heads {len(losses)} shows all"


def saliency_lines(seen, pieces, style):
    """/saliency"""
    weights = seen.attributions.tolist()
    yield f"strongest: {strongest(pieces, weights, style, 8)}"
    yield f"  {heat_line(pieces, weights, style)}"
    yield (f"start + end logit {seen.score:.3f} (in fp32, nothing taken off for length), without words {seen.baseline:.3f}; "
           f"the words' parts make {sum(weights):.3f}, so {seen.missing:.3f} is missing ({seen.steps} steps)")


def patch_lines(patches, style):
    """/patch"""
    first, none = patches[0], "  (no answer)"
    yield (f"this question's best span: {short(first.answer.text, style)}{'' if first.says else none}; "
           f"the other's: {short(first.other.text, style)}{'' if first.other_says else none}")
    for one in patches:
        yield (f"with the states of the {one.part}'s {counted(one.tokens, 'token')}, and of {' and '.join(one.specials)}, taken from the "
               f"other question's run:")
        yield f"{'swapped after':16}{'this':>8}{'other':>8}{'null':>8}  best span then"
        for layer in one.layers:
            name = f"block {layer.layer - 1}" if layer.layer else "embeddings"
            null = layer.prediction.null
            both = layer.answer_score, layer.other_score, null and sum(null)
            scores = "".join(f"{'-' if score is None else format(score, '.2f'):>8}" for score in both)
            best = layer.prediction.spans[0].text if layer.prediction.spans else ""
            flipped = "  (flipped)" if layer.layer in one.flips else ""
            said = "" if layer.prediction.answer(one.threshold) or not best else none
            yield f"{name:16}{scores}  {short(best, style)}{flipped}{said}"
    if len(patches) == 1:
        yield "the questions have different numbers of tokens, so the states of theirs were not swapped; one of as many would be"


def difference_lines(seen, names, style):
    """/diff"""
    for name, side in zip(names, seen.sides, strict=True):
        yield f"{name}: {said(side.answer, style)}; null {sum(side.null):.2f}, {100 * side.null_probability:.1f} %"
    yield "the same answer" if seen.same else "different answers"
    yield "".join(f"{short(name, style, 18):>20}" for name in names)
    for row in seen.rows:
        cells = []
        for score, probability in zip(row.scores, row.probabilities, strict=True):
            share = "" if probability is None else f" {100 * probability:5.1f} %"
            cells.append(f"{'-' if score is None else format(score, '.2f')}{share:>9}")
        yield "".join(f"{cell:>20}" for cell in cells) + f"  {short(row.text, style)}"


def token_lines(case, number, style):
    """/tokens"""
    pieces, tokenizer = case.pieces(number), case.reader.tokenizer
    sources, reach = {QUESTION: case.example.question, TEXT: case.example.context}, {}
    yield f"{'position':>8}{'type':>6}{'id':>8}  {'characters':>13}  token"
    for piece in pieces:
        place, source = "", ""
        if piece.start is not None:
            first, before = reach.get(piece.part, begins(case, number, piece))
            reach[piece.part] = first, max(before, piece.end)
            place = f"{piece.start}-{piece.end}"
            source = marked(tokenizer, sources[piece.part], min(before, piece.start), piece.start, piece.end)
            source = "" if source == piece.token.removeprefix("##") else f"  from {isolated(source, style)}"
        token = isolated(one_line(piece.token), style)
        yield f"{piece.position:8}{piece.type:6}{piece.id:8}  {place:>13}  {token}{source}"
    for part, (first, end) in reach.items():
        if part == QUESTION or case.windows.stop[number] == case.windows.stop.max():
            end = len(sources[part])  # what is dropped behind the last token belongs to it
        yield from change_lines(changes(tokenizer, sources[part], first, end), part, style)


def begins(case, number, piece):
    """(where the part of a window's first piece begins in its source, twice): what is dropped before it counts with it."""
    whole = piece.part == QUESTION or case.windows.start[number] == case.windows.start.min()
    return (0, 0) if whole else (piece.start, piece.start)


def change_lines(lost, part, style):
    """What the tokenizer dropped or took for something else, character by character with counts."""
    if lost:
        yield f"the tokenizer changed {counted(len(lost), 'character')} of the {part} in this window before cutting it:"
    for name in dict.fromkeys((one.character, one.name, one.left) for one in lost):
        count = sum(one.character == name[0] for one in lost)
        yield f"  {count} x {name[1]}: {'dropped' if not name[2] else f'taken for {isolated(name[2], style)}'}"


def marked(tokenizer, text, before, start, end):
    """text[start:end] with what the normaliser drops from text[before:end] in brackets, invisible characters by number."""
    lost = {one.place: one for one in changes(tokenizer, text, before, end)}
    parts = []
    for place in range(before, end):
        character = text[place]
        if place in lost and not lost[place].left:
            visible = f"U+{ord(character):04X}" if not character.isprintable() else f"\u25cc{character}"
            parts.append(f"[{visible}]")
        elif place >= start:
            parts.append(one_line(character))
    return "".join(parts)


def window_lines(case, style):
    """/windows"""
    context, before = case.example.context, None
    for number in range(len(case.windows)):
        first, stop = int(case.windows.start[number]), int(case.windows.stop[number])
        offsets = case.windows.offsets(number)
        start, end = int(offsets[0, 0]), int(offsets[-1, 1])
        shared = "" if before is None else f", {before - first} shared with window {number - 1}"
        yield (f"window {number}: {case.windows.length[number]} tokens, of the text {first} to {stop - 1}{shared}; "
               f"characters {start} to {end}")
        yield f"  {short(context[start:end], style, 60)}"
        before = stop


def trace_text(steps):
    """/trace, as the contents of a file."""
    lines = []
    for number, step in enumerate(steps):
        shape = " x ".join(map(str, step.shape)) or "one number"
        numbers = f"min {step.lowest:.4g}  mean {step.mean:.4g}  max {step.highest:.4g}"
        lines += [
            f"{number:4}  {step.module or 'the model'}  {step.operation}",
            f"      {shape}  {step.dtype}  {numbers}",
            f"      {step.equation or 'no equation is known for this operation'}",
            f"      {step.file}:{step.line}: {step.code}",
        ]
    return "\n".join(lines) + "\n"
