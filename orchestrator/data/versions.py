"""Versions of the code that makes rows of a source's bytes: raised when a part of it gives other rows.

All are in the digest of a source, and so in every key of the cache that depends on its rows: what an earlier
version left there is not taken for what this one would make.
"""

from __future__ import annotations

CONVERSION = 6
"""Files to Arrow."""
ROWS = {
    "conversion": CONVERSION,
    # Rows are judged, scrubbed and hashed.
    "examination": 10,
    "near_duplicates": 1,
    "decontamination": 3,
    # Labels become ids.
    "labels": 1,
    # Conversations become tokens.
    "conversations": 1,
}
