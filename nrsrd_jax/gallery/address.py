"""The address of a gallery: a folder, or object storage."""

from pathlib import Path

from ..errors import InputError
from ..files import expanded


def address(uri: str | Path) -> str:
    """Return the absolute path of a folder, or the address of object storage unchanged.

    Raises:
        InputError: the address is that of a LanceDB server.
    """
    text = str(uri)
    if text.startswith("db://"):
        raise InputError(
            f"{text} is a LanceDB server, on which nrsrd cannot delete crops permanently; give a folder, or "
            "object storage such as s3://bucket/gallery"
        )
    return text if "://" in text else str(expanded(text).absolute())
