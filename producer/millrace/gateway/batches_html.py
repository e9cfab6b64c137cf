"""What the status page has of bulk files besides text: bars, and what holds a batch up. Everything is escaped here."""

from __future__ import annotations

from html import escape

from millrace.bulk.glance import BulkFiles, Glance
from millrace.overview_rows import percent, printable, share_of, trouble_of


def progress(batch: Glance) -> str:
    """The bar with its share in words, and what is wrong below it."""
    share = share_of(batch)
    name = escape(f"{printable(batch.file)}, {batch.status.replace('_', ' ')}")
    # Of so many steps, as a page is only touched where it differs.
    bar = f'<progress max="1" value="{share:.3f}" aria-label="{name}"></progress>'
    trouble = trouble_of(batch)
    kind = "waits" if batch.problem is not None else "bad"
    below = f'<small class="{kind}">{escape(trouble)}</small>' if trouble else ""
    return f'<span class="bar">{bar} {percent(share)}</span>{below}'


def left_out(bulk: BulkFiles) -> str:
    """How many there are that the table has no room for."""
    if bulk.left_out <= 0:
        return ""
    return f'<p class="none">And {bulk.left_out:,} more that have not ended: <code>millrace batch list</code></p>'
