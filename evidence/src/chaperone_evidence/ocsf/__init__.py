"""Evidence as events of the Open Cybersecurity Schema Framework (OCSF), version 1.9.0. Pure.

`Records` reads the records of a stream, one event each; `objects` reads what the aggregated API shows. What the schema
has no attribute for stands under `unmapped`. No event holds the text of a statement.
"""

from __future__ import annotations

from chaperone_evidence.ocsf.event import VERSION, Event
from chaperone_evidence.ocsf.records import Place, Records, place_of

__all__ = ["VERSION", "Event", "Place", "Records", "place_of"]
