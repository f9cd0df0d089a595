"""An explanation as one HTML page that needs nothing from outside: no script, font or picture of anyone else."""

import json
from pathlib import Path

TEMPLATE = Path(__file__).with_name("page.html")
PLACE = "/*EXPLANATION*/null"


def page(explanation):
    """The page as text. What users typed stands in it as JSON inside a script, so no text of theirs is markup."""
    value = json.dumps(explanation, ensure_ascii=False, allow_nan=False)
    # in a script element only "<" can end it or begin a comment; these two are line ends to old readers of scripts
    for character in "<\u2028\u2029":
        value = value.replace(character, f"\\u{ord(character):04x}")
    template = TEMPLATE.read_text(encoding="utf-8")
    assert template.count(PLACE) == 1
    return template.replace(PLACE, value.encode("utf-8", "backslashreplace").decode())
