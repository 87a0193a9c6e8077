"""Records that gave no document, as JSON lines that say where each stands and what is wrong."""

from collections.abc import Sequence

import orjson

from llm_data.edge.sources.inputs import InputFile
from llm_data.edge.sources.readers import UNITS
from llm_data.records import Reject


def quarantine_line(files: Sequence[InputFile], reject: Reject) -> bytes:
    """A line without its end: file, number of the line or row, reason, detail, the record."""
    file = files[reject.place.source]
    return orjson.dumps(
        {
            "file": str(file.path),
            "unit": UNITS[file.kind],
            "number": reject.place.number,
            "reason": reject.reason.value,
            "detail": reject.detail,
            "raw": reject.raw,
        }
    )


def quarantined_place(line: bytes) -> str:
    """What such a line says, in words."""
    found = orjson.loads(line)
    place = "" if found["unit"] == "file" else f": {found['unit']} {found['number']}"
    return f"{found['file']}{place}: {found['detail']}"
