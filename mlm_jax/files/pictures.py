"""What the pictures share."""


def plain_text(text: str) -> str:
    """`text` as Matplotlib shows it unchanged: what stands between two dollar signs would be read as mathematics."""
    return text.replace('$', r'\$')
