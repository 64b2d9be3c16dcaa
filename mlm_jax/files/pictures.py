"""What all figures share."""


def plain_text(text: str) -> str:
    """Escapes dollar signs, because Matplotlib would typeset the text between two of them as mathematics."""
    return text.replace('$', r'\$')
