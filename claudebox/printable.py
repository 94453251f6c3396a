"""Makes text from outside safe to show: nothing in it can move the cursor or pretend to be a line."""


def printable(text: str) -> str:
    """Return `text` with every character that does not draw exactly itself as an escape.

    Escaped are C0 and C1 controls, newlines, bidirectional and zero-width characters, lone
    surrogates (bytes that were not UTF-8), unassigned code points, blanks other than the space,
    and marks that draw over their neighbour.
    """
    if text.isascii() and text.isprintable():
        return text
    import unicodedata

    shown = []
    for character in text:
        if not character.isprintable() or (
            ord(character) > 0x7F
            and (
                unicodedata.category(character)[0] == "M"
                or character in "\u115f\u1160\u2800\u3164\uffa0"
            )
        ):
            if "\udc80" <= character <= "\udcff":
                shown.append(f"\\x{ord(character) - 0xDC00:02x}")
            else:
                shown.append(character.encode("unicode_escape", "surrogatepass").decode())
        else:
            shown.append(character)
    return "".join(shown)
