"""What the parts of the script tell: one JSON object a line on standard output, a cell of the table each."""

import json

DARKROOM, DIFFUSERS, COMPILED = "darkroom", "diffusers", "compiled"


def tell(row, column, **cell):
    """A cell: `value` and `unit`, or what else the row's goal asks for."""
    print(json.dumps({"row": row, "column": column, "cell": cell}), flush=True)


def tell_missing(row, column, reason):
    """A cell without its figure."""
    tell(row, column, missing=" ".join(str(reason).split())[:200])


def summary(found):
    """The cell of likenesses in dB by case; a case is a checkpoint and a name."""
    worst = min(found, key=found.get)
    by_checkpoint = {}
    for (checkpoint, _), decibels in found.items():
        by_checkpoint.setdefault(checkpoint, []).append(decibels)
    return {
        "mean": sum(found.values()) / len(found),
        "least": found[worst],
        "worst": ", ".join(worst),
        "cases": len(found),
        "by_checkpoint": {name: sum(rows) / len(rows) for name, rows in by_checkpoint.items()},
        "by_case": {", ".join(case): round(decibels, 2) for case, decibels in found.items()},
    }
