"""JSON that carries a hash of itself, so that damage to it is found where it would still be JSON."""

import hashlib
import json
from typing import Any

KEY = 'seal'


def seal(content: dict[str, Any]) -> str:
    """The SHA-256 of the content, whatever the order of its keys and the layout of the file."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def dumps(content: dict[str, Any]) -> bytes:
    """The content with its seal, on one line of JSON."""
    return json.dumps({**content, KEY: seal(content)}).encode()


def loads(raw: bytes) -> dict[str, Any]:
    """The content of what `dumps` wrote; ValueError where it is anything else."""
    content = parse(raw)
    if content.pop(KEY, None) != seal(content):
        raise ValueError('its content does not have the hash that it names')
    return content


def parse(raw: bytes) -> dict[str, Any]:
    """The object that JSON of any origin holds; ValueError where it is no JSON, or no object."""
    try:
        content = json.loads(raw.decode())
    except RecursionError:
        raise ValueError('it is nested too deeply') from None
    if not isinstance(content, dict):
        raise ValueError(f'it holds a {type(content).__name__}, not an object')
    return content
