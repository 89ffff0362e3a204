"""The tree of the search as SVG text: one column per depth, kept beams as boxes, pruned candidates below them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import escape

from agent.plan import Plan, TreeNode
from agent.report.text import number

STATUS_WORDS = {
    "kept": "kept",
    "pruned": "pruned",
    "blocked": "blocked",
    "duplicate": "duplicate",
    "unassessed": "not simulated",
}
_BOX, _GAP, _ROW, _SMALL, _HEAD = 29, 6, 35, 15.5, 46
_LETTER = 0.56  # width of a letter of the page's font, in its size
_LISTED = 14


@dataclass(frozen=True)
class _Placed:
    """A kept node's box and the tag by which its children name it."""

    tag: str
    x: float
    y: float


def chosen_path(plan: Plan) -> set[str]:
    """Ids of the nodes that lead to the chosen protocol: one node of it and all that node's ancestors.

    Of its nodes the deepest kept one; where the last comparison chose what the search had pruned, the deepest one that
    was simulated.
    """
    if plan.chosen is None:
        return set()
    by_id = {node.node_id: node for node in plan.tree}
    ends = [node for node in plan.tree if node.n and node.protocol == plan.chosen.assessed.key]
    if not ends:
        return set()
    node: TreeNode | None = max(ends, key=lambda n: (n.status == "kept", n.depth, -_order(n)[0]))
    path: set[str] = set()
    while node is not None and node.node_id not in path:
        path.add(node.node_id)
        node = by_id.get(node.parent) if node.parent else None
    return path


def _order(node: TreeNode) -> tuple[float, str]:
    """Best first; nodes without a risk come last."""
    return (node.objective if node.objective is not None else 1e9, node.node_id)


def tags(tree: Sequence[TreeNode]) -> dict[str, str]:
    """Short names of the kept nodes, such as ``2b``: the depth and a letter, best first."""
    out: dict[str, str] = {}
    for depth in sorted({node.depth for node in tree}):
        kept = sorted((n for n in tree if n.depth == depth and n.status == "kept"), key=_order)
        for rank, node in enumerate(kept):
            letter = chr(ord("a") + rank) if rank < 26 else f"{rank + 1}"
            out[node.node_id] = f"{depth}{letter}" if node.phase != "root" else "start"
    return out


def _added(node: TreeNode) -> str:
    if node.phase == "protocol":
        return node.protocol
    return f"+ {node.added}" if node.added else "= unchanged"


def tree_svg(plan: Plan) -> str:
    """Draw the search tree of a plan."""
    return draw_tree(plan.tree, chosen_path(plan))


def draw_tree(nodes_so_far: Sequence[TreeNode], path: set[str]) -> str:
    """Draw a search tree, finished or on its way.

    Each depth is a column with the beams that were kept, best on top, and the candidates that were not kept in small
    type below, named by the beam they extend. At most 14 of these are listed per column; the page's table has all.

    Args:
        nodes_so_far: The nodes, root included.
        path: Ids of the nodes that lead to the chosen protocol.
    """
    tree = [node for node in nodes_so_far if node.phase != "root"]
    if not tree:
        return ""
    roots = [node for node in nodes_so_far if node.phase == "root"]
    depths = sorted({node.depth for node in tree})
    names = tags(nodes_so_far)
    width, start = 1180.0, 62.0
    column = (width - start) / len(depths)
    box = min(column - 32.0, 460.0)
    placed: dict[str, _Placed] = {}
    body: list[str] = []
    lowest = 0.0
    rest_of: dict[int, list[TreeNode]] = {}
    for number_of, depth in enumerate(depths):
        x = start + number_of * column + 24.0
        nodes = [node for node in tree if node.depth == depth]
        kept = sorted((n for n in nodes if n.status == "kept"), key=_order)
        phase = nodes[0].phase
        nth = sum(1 for d in depths[: number_of + 1] if any(n.depth == d and n.phase == phase for n in tree))
        title = "Whole protocols" if phase == "protocol" else f"{phase.capitalize()} {nth}"
        body.append(
            f'<text x="{x:.1f}" y="16" font-size="13" font-weight="600" fill="#1c2b36">{title}</text>'
            f'<text x="{x:.1f}" y="32" font-size="11.5" fill="#5d6f7c">{len(nodes)} candidates, {len(kept)} kept</text>'
        )
        for row, node in enumerate(kept):
            placed[node.node_id] = _Placed(names[node.node_id], x, _HEAD + row * _ROW)
        lowest = max(lowest, _HEAD + len(kept) * _ROW)
        rest_of[depth] = sorted(
            (n for n in nodes if n.status != "kept"), key=lambda n: (n.node_id not in path, _rank(n), _order(n))
        )
    for root in roots:
        placed[root.node_id] = _Placed("", 0.0, _HEAD)
    edges, boxes = _kept(tree, placed, path, box)
    start_box = (
        f'<rect x="1" y="{_HEAD}" width="{start - 14:.0f}" height="{_BOX}" rx="7" fill="#1c2b36"/>'
        f'<text x="{(start - 12) / 2:.1f}" y="{_HEAD + 19}" font-size="12" text-anchor="middle" fill="#fff">'
        "start</text>"
    )
    # Pruned candidates of all columns begin on one line, so that the eye finds them.
    lowest += 14
    deepest = lowest
    for number_of, depth in enumerate(depths):
        x = start + number_of * column + 24.0
        lines, height = _rest(rest_of[depth], names, path, x, lowest, box)
        body.append(lines)
        deepest = max(deepest, lowest + height)
    rule = (
        f'<path d="M0 {lowest - 6:.1f}H{width:.0f}" stroke="#e3e9ed"/>'
        f'<text x="0" y="{lowest + 12:.1f}" font-size="11.5" fill="#5d6f7c">not kept</text>'
    )
    head = f'viewBox="0 0 {width:.0f} {deepest + 6:.0f}" role="img" aria-label="Tree of the search"'
    return "".join((f'<svg class="chart tree" {head}>', *edges, start_box, *boxes, rule, *body, "</svg>"))


def _rank(node: TreeNode) -> int:
    return {"pruned": 0, "blocked": 1, "unassessed": 2, "duplicate": 3}.get(node.status, 4)


def _kept(
    tree: Sequence[TreeNode], placed: dict[str, _Placed], path: set[str], box: float
) -> tuple[list[str], list[str]]:
    """Edges and boxes of the kept nodes; the way to the chosen protocol is drawn last and stronger."""
    edges: list[tuple[bool, str]] = []
    boxes: list[str] = []
    for node in tree:
        here = placed.get(node.node_id)
        if here is None:
            continue
        strong = node.node_id in path
        if node.parent in placed:
            origin = placed[node.parent]
            x0 = origin.x + (box if origin.tag else 49.0)
            y0, y1 = origin.y + _BOX / 2, here.y + _BOX / 2
            bend = (here.x - x0) * 0.5
            curve = f"M{x0:.1f} {y0:.1f}C{x0 + bend:.1f} {y0:.1f} {here.x - bend:.1f} {y1:.1f} {here.x:.1f} {y1:.1f}"
            stroke = 'stroke="#0072B2" stroke-width="2.6"' if strong else 'stroke="#c3ced6" stroke-width="1.3"'
            edges.append((strong, f'<path d="{curve}" fill="none" {stroke}/>'))
        fill, ink, soft = ("#0072B2", "#ffffff", "#d6eaf6") if strong else ("#f3f6f8", "#1c2b36", "#5d6f7c")
        risk = "" if node.objective is None else number(node.objective, 2)
        spread = "" if node.se is None else f" (standard error {number(node.se, 3)})"
        room = box - 26 - 8 - 7 * len(risk) - 6  # between tag and figure, with a gap
        size = min(12.0, room / (_LETTER * len(_added(node))))
        line = here.y + 19
        boxes.append(
            f'<g data-node="{escape(node.node_id)}" data-protocol="{escape(node.protocol)}">'
            f"<title>{escape(node.protocol)}: "
            f"objective {risk or 'not evaluable'}{spread}, n = {node.n}. {escape(node.reason)}</title>"
            f'<rect x="{here.x:.1f}" y="{here.y:.1f}" width="{box:.1f}" height="{_BOX}" rx="7" fill="{fill}" '
            f'stroke="{"#0072B2" if strong else "#d5dde3"}"/>'
            f'<text x="{here.x + 8:.1f}" y="{line:.1f}" font-size="10.5" fill="{soft}">{here.tag}</text>'
            f'<text x="{here.x + 26:.1f}" y="{line:.1f}" font-size="{size:.1f}" fill="{ink}">'
            f"{escape(_added(node))}</text>"
            f'<text x="{here.x + box - 8:.1f}" y="{line:.1f}" font-size="12" font-weight="600" text-anchor="end" '
            f'class="num" fill="{ink}">{risk}</text></g>'
        )
    return [edge for _, edge in sorted(edges, key=lambda pair: pair[0])], boxes


def _rest(
    nodes: Sequence[TreeNode], names: dict[str, str], path: set[str], x: float, top: float, box: float
) -> tuple[str, float]:
    """Candidates that were not kept, one small line each; one that was chosen after all stands out."""
    shown = [node for node in nodes if node.status != "duplicate"]
    duplicates = len(nodes) - len(shown)
    lines: list[str] = []
    y = top + 12.0
    listed = shown if len(shown) <= _LISTED + 1 else shown[:_LISTED]
    for node in listed:
        from_tag = names.get(node.parent or "", "")
        from_tag = "" if from_tag == "start" else from_tag + " "
        colour = "#a3381a" if node.status == "blocked" else "#5d6f7c"
        ink = f'fill="{colour}"'
        if node.node_id in path:
            ink = 'fill="#0072B2" font-weight="600"'
        missing = "rule" if node.status == "blocked" else "\N{EN DASH}"
        right = missing if node.objective is None else number(node.objective, 2)
        lines.append(
            f'<g data-node="{escape(node.node_id)}" data-protocol="{escape(node.protocol)}">'
            f"<title>{escape(node.protocol)}: {STATUS_WORDS[node.status]}. {escape(node.reason)}</title>"
            f'<text x="{x:.1f}" y="{y:.1f}" font-size="11" {ink}>{from_tag}{escape(_added(node))}</text>'
            f'<text x="{x + box - 8:.1f}" y="{y:.1f}" font-size="11" text-anchor="end" class="num" {ink}>'
            f"{right}</text></g>"
        )
        y += _SMALL
    more = len(shown) - len(listed)
    notes = [f"{more} more in the table"] if more else []
    notes += [f"{duplicates} duplicate{'s' if duplicates > 1 else ''} merged"] if duplicates else []
    for note in notes:
        lines.append(f'<text x="{x:.1f}" y="{y:.1f}" font-size="11" font-style="italic" fill="#5d6f7c">{note}</text>')
        y += _SMALL
    return "".join(lines), y - top - 6
