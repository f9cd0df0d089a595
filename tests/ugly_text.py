"""Texts that break naive offset arithmetic, as a hypothesis strategy."""

from hypothesis import strategies as st

FRAGMENTS = (
    "play", "Playing", "the", "antidisestablishmentarianism", "x" * 230, "1895-1943", "£9.20", "[SEP]",
    "##ing", "[CLS]", "می\u200cروم", "کتاب\u200cها", "نامه\u200cای", "آبِ", "قلهٔ", "٪", "«», ؟", "\u200c",
    "\u200d", "\u200e", "\u200f", "\u202b", "\u202c", "e\u0301", "\u0301", "a\u0328\u0301\u0302", "ấ", "İ",
    "ß", "ﬁ", "Σς", "½", "क्षि", "ไทย", "한국어", "하", "東京", "カﾞ", "が", "👩\u200d🔬", "🇮🇷", "👍🏽", "\ufe0f",
    "𝔘𝔫𝔦", "𝅥𝅭", "\x00", "\x07", "\x1c", "\x1f", "\x7f", "\x85", "\x0b", "\x0c", "\xad", "\ufeff", "�",
    "\ufffe", "\ue000", "\ud83d", "\udc00", "\ud800", " ", " ", " ", "\n", "\r\n", "\t", "\xa0", "\u2009",
    "\u2028", "\u2029", "\u3000", "\u1680", "\u180e", "\u200b", ".", "-", "—", "’", "(", "…", "_", "$", "+",
)

fragments = st.sampled_from(FRAGMENTS)
characters = st.characters(exclude_categories=())  # everything, surrogates and the unassigned among them
ugly_texts = st.lists(fragments | st.text(characters, max_size=4), max_size=40).map("".join)
