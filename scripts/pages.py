"""Tables that scripts write into pages of the documentation, between marks that name the script.

<!-- scripts/performance.py -->
| what | ... |
<!-- end -->
"""

from __future__ import annotations


def written(text: str, script: str, table: str) -> str:
    """A page's text with this table between the marks of a script, or ValueError without them."""
    begin, end = f"<!-- scripts/{script} -->\n", "<!-- end -->"
    if text.count(begin) != 1 or end not in text.partition(begin)[2]:
        raise ValueError(f"expected one table between {begin.strip()} and {end}")
    before, _, rest = text.partition(begin)
    return f"{before}{begin}{table}\n{end}{rest.partition(end)[2]}"
