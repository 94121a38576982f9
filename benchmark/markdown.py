"""Tables in Markdown."""


def markdown_table(header, rows, aligned=False):
    """A header and rows of cells -> the lines of a table. `aligned` pads its columns, for a terminal."""
    lines = [[str(cell) for cell in row] for row in [header, *rows]]
    rule = ["---"] * len(header)
    if aligned:
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        lines = [[cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines]
        rule = ["-" * width for width in widths]
    return "\n".join("| " + " | ".join(line) + " |" for line in [lines[0], rule, *lines[1:]])
