"""Tables of a report, once for Markdown and HTML: what stands in which cell."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from evals.compare import CACHED
from evals.measures import METRICS
from evals.published import load_published
from evals.report.summary import Board, CaseLine, Figure, Line, Summary, Versus
from evals.results import STATUS_TEXT
from evals.statistics import why_undetectable

TERMINAL = ("f1", "regret", "gold_recall")
MAIN = ("f1", "jaccard", "precision", "recall", "regret", "win_vs_given", "gold_recall", "best_recall")
FURTHER = (
    "exact", "drug_f1", "embolic_f1", "class_f1", "dose_within", "regret_of_random", "violations", "best_within",
    "stability",
)  # fmt: skip
EFFORT = ("requests", "tokens", "cost_usd", "tool_calls", "simulations", "seconds")


@dataclass(frozen=True)
class Row:
    """Cells of a line; `css` marks it in HTML, `link` and `last_link` are files that its first and last cell lead to.

    A row with fewer cells than columns ends early: its last cell has the rest of the line.
    """

    cells: tuple[str, ...]
    css: str = ""
    link: str | None = None
    last_link: str | None = None


@dataclass(frozen=True)
class Table:
    """A table with what has to be known to read it."""

    title: str
    lead: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    note: str = ""
    wide: bool = field(default=False, compare=False)


def shown(figure: Figure | None, metric: str) -> str:
    """A mean with its interval, in percent where the metric is shown so; empty where there is none."""
    if figure is None:
        return ""
    what = METRICS[metric]
    return _with_interval(figure.mean, figure.low, figure.high, 100.0 if what.percent else 1.0, what.digits)


def _with_interval(mean: float, low: float | None, high: float | None, factor: float, digits: int) -> str:
    text = f"{mean * factor:.{digits}f}"
    if low is None or high is None:
        return text
    return f"{text} [{low * factor:.{digits}f}, {high * factor:.{digits}f}]"


def leaderboard(summary: Summary, board: Board, metrics: Sequence[str] = MAIN) -> Table:
    """All contestants on one gold variant, in the figures that decide.

    Args:
        summary: The figures.
        board: Of one gold variant.
        metrics: Columns, where anybody has them; a terminal has room for fewer.
    """
    names = _names(board, metrics)
    return Table(
        title=f"Leaderboard, gold: {board.variant}",
        lead=f"on {summary.spec.dataset} {summary.spec.dataset_version}, {summary.spec.data_origin} patients; means "
        "over cases with 95 % bootstrap intervals by patient",
        columns=("who", "n", *(_label(name) for name in names), "no answer"),
        rows=_board_rows(board, names, _no_answer),
        note="Scores per case, then averaged, as in the paper. Both sets empty scores 1, one of them empty 0; an agent "
        "outside the action set is a false positive; an answer that is missing, invalid or degraded is empty. Regret: "
        "true risk of the choice minus that of the best allowed protocol, as a share of worst minus best; no answer "
        "counts as the worst allowed protocol.",
    )


def _no_answer(line: Line) -> str:
    return str(line.empty) if line.answers == line.n else f"{line.empty} of {line.answers}"


def further(board: Board) -> Table:
    """The other figures of the same contestants."""
    names = _names(board, FURTHER)
    unknown = "; ".join(f"{line.label} {line.unknown}" for line in board.lines if line.unknown)
    return Table(
        title=f"Further figures, gold: {board.variant}",
        lead="the same cases and intervals; micro F1 pools the agents of all cases",
        columns=("who", "n", *(_label(name) for name in names), "Micro F1 %"),
        rows=_board_rows(board, names, _micro_f1, not_run=False),
        note="Rules broken: blocking rules that an answer breaks. Dose in range: only of answers that state a dose, "
        "which the search never does. Stability: mean pairwise Jaccard of the answers to one case over the epochs. "
        f"Names outside the action set, each a false positive: {unknown or 'none'}.",
        wide=True,
    )


def _micro_f1(line: Line) -> str:
    if line.micro_f1 is None:
        return ""
    return _with_interval(line.micro_f1, line.micro_f1_low, line.micro_f1_high, 100.0, 1)


def _names(board: Board, wanted: Sequence[str]) -> list[str]:
    return [name for name in wanted if any(name in line.figures for line in board.lines)]


def _label(name: str) -> str:
    return METRICS[name].label + (" %" if METRICS[name].percent else "")


def _board_rows(
    board: Board, names: Sequence[str], last: Callable[[Line], str], not_run: bool = True
) -> tuple[Row, ...]:
    rows = []
    for line in board.lines:
        if line.not_run is None:
            cells = (line.label, str(line.n), *(shown(line.figures.get(name), name) for name in names), last(line))
            rows.append(Row(cells, "own" if line.lead else ""))
        elif not_run:
            rows.append(Row((line.label, "", f"not run: {line.not_run}"), "notrun"))
    return tuple(rows)


def published() -> Table:
    """The paper's Tables 2 and 3, as reference."""
    found = load_published()
    columns = [
        f"{name} ({cohort})" for cohort in ("in-house", "public") for name in ("F1 %", "Jaccard %", "Prec. %", "Rec. %")
    ]
    rows = []
    for line in found.rows:
        values = (v for score in (line.in_house, line.public) for v in score.model_dump().values())
        rows.append(Row((f"{line.method} (Table {line.table})", *(f"{value:.2f}" for value in values)), "published"))
    return Table(
        title="The paper's Tables 2 and 3",
        lead=f"{found.caption('in_house')}; {found.caption('public')}",
        columns=("who", *columns),
        rows=tuple(rows),
        note=f"{found.source}. Reference lines, no competitors: other patients, another split, no intervals.",
    )


def versus(summary: Summary) -> list[Table]:
    """The lead against every other line, a table for each gold variant on which there is another line."""
    by_variant: dict[str, list[Versus]] = {}
    for one in summary.versus:
        by_variant.setdefault(one.variant, []).append(one)
    several = len(summary.boards) > 1
    return [
        _versus(summary.label, found, f", gold: {variant}" if several else "") for variant, found in by_variant.items()
    ]


def _versus(label: str, found: Sequence[Versus], where: str) -> Table:
    missing = [v for v in found if v.missing]
    rows = []
    for v in found:
        metric = METRICS[v.metric]
        factor, digits = (100.0 if metric.percent else 1.0), metric.digits
        seen = v.smallest_detectable
        least = why_undetectable(v.n) if seen is None else f"{seen * factor:.{digits}f}"
        # rounded first, and + 0.0: a difference that is shown as nothing has no sign
        mean, low, high = (round(value * factor, digits) + 0.0 for value in (v.mean, v.low, v.high))
        difference = f"{mean:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]"
        rows.append(
            Row((
                v.label, metric.label + (" %" if metric.percent else ""), difference, f"{v.p:.4g}", f"{v.p_holm:.4g}",
                f"{v.wins} / {v.ties} / {v.losses}", str(v.n), least,
            ))
        )  # fmt: skip
    return Table(
        title=f"Against every other line{where}",
        lead=f"{label} minus the other, paired by case",
        columns=("other", "metric", "difference [95 %]", "p", "p (Holm)", "wins / ties / losses", "n", "detectable"),
        rows=tuple(rows),
        note="Two-sided sign-flip permutation p, exact for 20 cases and fewer; Holm over the lines of a metric in this "
        "table. Detectable: the smallest true difference that this n would have shown with 80 % power. Less regret is "
        "better."
        + "".join(f" In no figure, {METRICS[v.metric].label} of {v.label}: {', '.join(v.missing)}." for v in missing),
    )


def effort(summary: Summary) -> Table:
    """What a case costs, by node."""
    failed = summary.statuses.get("failed", 0)
    own = summary.boards[0].line("own")
    assert own is not None  # a summary has its lead
    rows = [Row(("one case", *(shown(own.figures.get(name), name) for name in EFFORT)), "own")]
    for node, use in summary.by_node.items():
        tokens = use.input_tokens + use.output_tokens
        cost = "" if use.cost_usd is None else f"{use.cost_usd:.4f}"
        cells = (f"{use.requests:.1f}", f"{tokens:.0f}", cost, f"{use.tool_calls:.1f}", f"{use.simulations:.1f}",
                 f"{use.seconds:.1f}")  # fmt: skip
        rows.append(Row((f"of it {node}", *cells)))
    return Table(
        title="Effort",
        lead="mean per case; what the language models and the tools were asked, and how long it took",
        columns=("where", *(METRICS[name].label for name in EFFORT)),
        rows=tuple(rows),
        note=f"{CACHED} Seconds hold waiting for other cases, where several run at once."
        + (f" {failed} failed answers are left out: they ended before they had cost what one costs." if failed else ""),
    )


def reach(summary: Summary) -> Table:
    """How many gold protocols could have been answered at all."""
    rows = []
    for variant, found in summary.reach.items():
        why = "; ".join(f"{reason} ({count})" for reason, count in found.reasons.items()) or "none is out of reach"
        rows.append(Row((variant, f"{found.reachable} of {found.n}", why)))
    return Table(
        title="Gold within reach",
        lead="gold protocols that a search under the rules and horizons could have returned: a limit on every score",
        columns=("gold", "within reach", "why not (cases)"),
        rows=tuple(rows),
    )


def confusion(summary: Summary, variant: str) -> Table:
    """How often each agent was answered and was in gold."""
    rows = []
    for item in summary.items[variant]:
        if item.true_positive + item.false_positive + item.false_negative == 0:
            continue
        counts = (item.true_positive, item.false_positive, item.false_negative, item.true_negative)
        share = "" if item.f1 is None else f"{100 * item.f1:.1f}"
        rows.append(Row((item.item, *map(str, counts), share)))
    return Table(
        title=f"Confusion by agent, gold: {variant}",
        lead=f"answers of {summary.label}; agents that are in no answer and no gold are left out",
        columns=("agent", "in both", "answered only", "gold only", "in neither", "F1 %"),
        rows=tuple(rows),
    )


def case_table(summary: Summary) -> Table:
    """One line per case and epoch, linked to its trace."""
    variants = [board.variant for board in summary.boards]
    with_regret = any(case.regret is not None for case in summary.cases)
    with_space = any(case.gold_recall is not None for case in summary.cases)
    columns = ["case", "status", "answer", f"gold ({variants[0]})", *(f"F1 % ({v})" for v in variants)]
    columns += ["regret", "truly best"] if with_regret else []
    columns += ["gold in space %"] if with_space else []
    columns += ["rules broken", "simulations", "tokens", "cost (USD)", "seconds"]
    with_alone = any(case.alone is not None for case in summary.cases)
    columns += ["VLM alone"] if with_alone else []
    rows = tuple(
        Row(
            _case_cells(case, summary, variants, with_regret, with_space)
            + ((case.alone or "",) if with_alone else ()),
            case.status, case.trace, case.alone_trace if with_alone else None,
        )
        for case in summary.cases
    )  # fmt: skip
    statuses = ", ".join(f"{n} {status}" for status, n in summary.statuses.items())
    return Table(
        title="Cases",
        lead=f"{statuses}; the name of a case leads to its trace"
        + (", the last cell to that of the model alone" if with_alone else ""),
        columns=tuple(columns),
        rows=rows,
        note=" ".join(f"{status}: {STATUS_TEXT[status]}." for status in summary.statuses),
        wide=True,
    )


def _case_cells(
    case: CaseLine, summary: Summary, variants: Sequence[str], with_regret: bool, with_space: bool
) -> tuple[str, ...]:
    name = case.case_id + (f" ({case.epoch})" if summary.epochs > 1 else "")
    answer = case.protocol
    if case.status == "degraded":
        answer = f"none (fallback: {case.fallback or 'none'})"
    elif case.why:
        answer = f"{case.protocol}: {case.why}"
    out = [name, case.status, answer, case.gold.get(variants[0], "")]
    for variant in variants:
        far = "" if case.reachable.get(variant, True) else " (gold out of reach)"
        out.append(f"{100 * case.f1[variant]:.1f}{far}" if variant in case.f1 else "")
    if with_regret:
        out += ["" if case.regret is None else f"{case.regret:.3f}", case.best or ""]
    if with_space:
        recall = (case.gold_recall or {}).get(variants[0])
        out.append("" if recall is None else f"{100 * recall:.1f}")
    cost = "" if case.cost_usd is None else f"{case.cost_usd:.4f}"
    out += [", ".join(case.broken), str(case.simulations), str(case.tokens), cost, f"{case.seconds:.1f}"]
    return tuple(out)


def all_tables(summary: Summary, *, with_cases: bool = True) -> list[Table]:
    """Every table of a report, in order, the paper's after ours; that of the cases comes last."""
    return [
        *(table for board in summary.boards for table in (leaderboard(summary, board), further(board))),
        published(),
        *versus(summary),
        effort(summary),
        reach(summary),
        *(confusion(summary, board.variant) for board in summary.boards),
        *([case_table(summary)] if with_cases else []),
    ]
