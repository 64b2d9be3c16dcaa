"""JSON files that contain their own checksum, so that damage is detected even if the file is still valid JSON."""

import hashlib
import json
from typing import Any

KEY = 'seal'


def seal(content: dict[str, Any]) -> str:
    """The SHA-256 of the content, independent of the order of its keys and of the layout of the file."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def dumps(content: dict[str, Any]) -> bytes:
    """The content and its checksum as one line of JSON."""
    return json.dumps({**content, KEY: seal(content)}).encode()


def loads(raw: bytes) -> dict[str, Any]:
    """The content that `dumps` wrote; raises ValueError for anything else."""
    content = parse(raw)
    if content.pop(KEY, None) != seal(content):
        raise ValueError('its content does not match its checksum')
    return content


def parse(raw: bytes) -> dict[str, Any]:
    """The object in a JSON file of any origin; raises ValueError if it is not JSON or not an object."""
    try:
        content = json.loads(raw.decode())
    except RecursionError:
        raise ValueError('it is nested too deeply') from None
    if not isinstance(content, dict):
        raise ValueError(f'it holds a {type(content).__name__}, not an object')
    return content
