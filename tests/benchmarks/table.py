"""The tables of `make bench` in docs/BENCHMARKS.md, between two markers; everything else there stays as it is."""

from measuring import SLOW

BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"


def markdown(table):
    """A `Table` (as a dict) as Markdown."""
    when = f" ({table['about']['date']}, {table['about']['rounds']} rounds)" if "about" in table else ""
    lines = [f"**{table['title']}**{when}", "", _row(table["columns"]), "|" + "---|" * len(table["columns"])]
    lines += [_row(row) for row in table["rows"]]
    if table["notes"]:
        lines += ["", " ".join(table["notes"])]
    return "\n".join(lines)


def _row(cells):
    return "| " + " | ".join(str(cell).replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def method(about):
    """How the figures were measured, in a paragraph. `about` has rounds, threads, date, versions and processor."""
    return (
        f"Measured on {about['date']} ({about['processor']}, {about['threads']} threads; {about['versions']}) by "
        f"`make bench`. All rows of a table are measured in one run, on the same model (SmolLM2-135M, float32), prompt "
        f"and threads, in {about['rounds']} interleaved rounds, each starting with another row, after a warm-up round "
        f"(a row that takes over {SLOW} s there runs only 3 times). Times are medians. A ratio is the median of the "
        "ratios within each round, with its quartiles in brackets; if 1.00 lies between them, no difference can be "
        "resolved. Memory is the peak growth of a fresh process during its second run, since the first one sets up "
        "buffers that stay. The rows and notes on limits say what the machine "
        "itself would allow, at the rates of the first table."
    )


def with_tables(page, tables, about):
    """The page's text with these tables between its markers. Raises `ValueError` where it does not have both, once."""
    if page.count(BEGIN) != 1 or page.count(END) != 1 or page.index(BEGIN) > page.index(END):
        raise ValueError(f"The page needs the lines {BEGIN} and {END} once each, in this order.")
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    parts = [method(about), *map(markdown, tables)] if tables else []
    return before + BEGIN + "\n" + "".join(f"{part}\n\n" for part in parts) + END + after
