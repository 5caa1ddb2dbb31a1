"""The rows of the table, their goals, and how they are written."""

from cells import COMPILED, DARKROOM, DIFFUSERS

COLUMNS = (DARKROOM, DIFFUSERS, COMPILED)
HEADINGS = ("", "darkroom", "diffusers, eager", "torch.compile", "goal", "met")
LEAST_F32_DB, LEAST_MEAN_DB, BELOW_TORCH_DB = 45.0, 35.0, 1.0
READY_S = 3.0
# Of a picture in SD 1.5 at batch 1 and SDXL at batch 1, beside eager; of SD 1.5 beside torch.compile.
SD15_OF_EAGER, SD15_OF_COMPILED, SDXL_OF_EAGER = 0.9, 1.1, 1.0
MIB_PER_GIB = 1024
MOST_OF_A_REASON = 90  # characters in a cell


class Plan:
    """What a run is to measure: which rows there are and which goals count."""

    def __init__(self, device, sizes, dtypes, models, speed_dtype):
        # Goals of speed are of full-size models on a GPU.
        self.times_count = not device.startswith("cpu") and sizes == "full"
        self.rows = {}
        for dtype in dtypes:
            self.rows[f"networks.{dtype}"] = f"networks, {dtype}: likeness to the reference"
            self.rows[f"pictures.{dtype}"] = f"pictures, {dtype}: likeness to the reference"
        self.rows["seed"] = f"the same seed on cpu and {device}, f32"
        self.rows["jobs"] = "200 jobs of 20 clients"
        self.rows["cancel"] = "cancelled within a step"
        self.rows["sigterm"] = "SIGTERM with a job running"
        self.rows["oom"] = "a request over the memory"
        self.rows["again"] = "after that"
        for model in models:
            title = f"{model.title}, {speed_dtype}"
            self.rows[f"{model.name}.ready"] = f"{title}: start to ready, warm file cache"
            self.rows[f"{model.name}.memory"] = f"{title}: peak memory, batch 1"
            for batch in sorted(model.batches):
                of = f"{title}, batch {batch}"
                self.rows[f"{model.name}.b{batch}.image"] = f"{of}: request to PNG bytes, {model.steps} steps"
                self.rows[f"{model.name}.b{batch}.unet"] = f"{of}: UNet, guidance pairs"
                self.rows[f"{model.name}.b{batch}.decode"] = f"{of}: decode"

    def goal(self, row, cells):
        """(goal, met): met is None where there is no goal or no figure to hold against it."""
        kind = row.split(".")[0]
        mine = cells.get(DARKROOM, {})
        if kind in ("pictures", "networks"):
            return likeness_goal(row.split(".")[1], mine, cells.get(DIFFUSERS, {}))
        if kind == "seed":
            return likeness_goal("f32", mine, {})
        if row in ("jobs", "cancel", "sigterm", "oom", "again"):
            return SERVING_GOALS[row], mine.get("passed")
        return self.time_goal(row, {column: cell.get("value") for column, cell in cells.items()})

    def time_goal(self, row, values):
        mine, eager, compiled = (values.get(column) for column in COLUMNS)
        if not self.times_count:
            return "", None
        if row == "sd15.ready":
            return f"≤ {READY_S:.0f} s", within(mine, READY_S)
        if row == "sd15.memory":
            return "≤ diffusers'", within(mine, eager)
        if row == "sdxl.b1.image":
            return f"≤ {SDXL_OF_EAGER} of eager", within(mine, eager, SDXL_OF_EAGER)
        if row == "sd15.b8.image":
            return "images/s ≥ torch.compile's", within(mine, compiled)
        if row == "sd15.b1.image":
            both = [within(mine, eager, SD15_OF_EAGER), within(mine, compiled, SD15_OF_COMPILED)]
            met = False if False in both else None if None in both else True
            return f"≤ {SD15_OF_EAGER} of eager, ≤ {SD15_OF_COMPILED} of torch.compile", met
        return "", None


SERVING_GOALS = {
    "jobs": "all drawn, ≥ 50 dB against alone",
    "cancel": "≤ a step",
    "sigterm": "0, the job done",
    "oom": "refused by its memory, worker alive",
    "again": "ready, and draws",
}


def within(mine, other, share=1.0):
    return None if mine is None or other is None else mine <= other * share


def likeness_goal(dtype, mine, torchs):
    """45 dB each in f32; else 35 on the mean, and for each checkpoint no less than torch's own of the same cases minus 1."""
    each = f"≥ {LEAST_F32_DB:.0f} dB each"
    goal = each if dtype == "f32" else f"mean ≥ {LEAST_MEAN_DB:.0f} dB, ≥ torch's − {BELOW_TORCH_DB:.0f}"
    if "mean" not in mine:
        return goal, None
    if dtype == "f32":
        below, whole = mine["least"] < LEAST_F32_DB, True
    else:
        behind = any(gap > BELOW_TORCH_DB for gap in behind_torch(mine, torchs).values())
        below, whole = mine["mean"] < LEAST_MEAN_DB or behind, bool(torchs.get("by_case")) and not torchs.get("unfinished")
    return goal, False if below else True if whole and not mine.get("unfinished") else None


def behind_torch(mine, torchs):
    """By how many dB torch's mean is ahead, by checkpoint, over the cases that both have."""
    gaps = {}
    for case, theirs in torchs.get("by_case", {}).items():
        if case in mine.get("by_case", {}):
            gaps.setdefault(case.split(", ")[0], []).append(theirs - mine["by_case"][case])
    return {checkpoint: sum(found) / len(found) for checkpoint, found in gaps.items()}


def written(row, cell):
    """A cell's text."""
    if "mean" in cell:
        failed = f", {len(cell['failures'])} failed" if cell.get("failures") else ""
        failed += ", unfinished" if cell.get("unfinished") else ""
        return f"mean {cell['mean']:.1f}, least {cell['least']:.1f} dB ({cell['worst']}) of {cell['cases']}{failed}"
    if "text" in cell:
        return cell["text"]
    if cell.get("value") is None:
        return shortened(cell.get("missing") or "–")
    value, unit = cell["value"], cell.get("unit")
    if unit == "MiB":
        return f"{value / MIB_PER_GIB:.2f} GiB" if value >= MIB_PER_GIB else f"{value} MiB"
    text = f"{value:.2f} s" if value >= 1 else f"{value * 1000:.3g} ms"
    parts = row.split(".")
    if parts[-1] == "image" and parts[1] != "b1":
        text += f" ({int(parts[1][1:]) / value:.2f} images/s)"
    if cell.get("first"):
        text += f" (first start {cell['first']:.2f} s)"
    return text


def shortened(reason):
    """A reason as a cell shows it; the JSON has the whole."""
    return reason if len(reason) <= MOST_OF_A_REASON else reason[: MOST_OF_A_REASON - 1] + "…"


def one_line(text):
    return " ".join(str(text).split()).replace("|", "\\|")


def markdown(plan, cells):
    """The one table."""
    lines = ["| " + " | ".join(HEADINGS) + " |", "| " + " | ".join("---" for _ in HEADINGS) + " |"]
    for row, title in plan.rows.items():
        found = cells.get(row, {})
        goal, met = plan.goal(row, found)
        texts = [one_line(written(row, found[column])) if column in found else "" for column in COLUMNS]
        verdict = "" if not goal else {True: "yes", False: "**no**", None: "not measured"}[met]
        gaps = behind_torch(found.get(DARKROOM, {}), found.get(DIFFUSERS, {}))
        furthest = max(gaps, key=gaps.get, default=None)
        if met is False and furthest and gaps[furthest] > BELOW_TORCH_DB:
            verdict += f": {gaps[furthest]:.1f} dB behind torch's ({furthest})"
        lines.append("| " + " | ".join([title, *texts, goal, verdict]) + " |")
    return "\n".join(lines)


def verdicts(plan, cells):
    """{row: (goal, met)}."""
    return {row: plan.goal(row, cells.get(row, {})) for row in plan.rows}
