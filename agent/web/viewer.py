"""Viewer: the CT pictures of the page, two side by side and linked, drawn by NiiVue in the browser.

`viewer()` is the component; its value is a scene: what there is to choose from, where each file is fetched, and what is
shown first. Everything that needs no server (windows, overlays, layouts, the difference of what is shown) is done by
`viewer.js`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

import gradio as gr

from agent.plan import Plan
from agent.web.access import Owner
from agent.web.volumes import IMAGE, OUTCOME, REGISTERED, has_registration, simulated, viewer_settings
from models.case import Case, Image
from models.errors import MewmError

ASSETS = "/mewm/assets/"
VOLUMES = "/mewm/volume/"
SCRIPTS = {
    "viewer.js": "text/javascript",
    "viewer.css": "text/css",
    "cases.js": "text/javascript",
    "cases.css": "text/css",
    "approvals.js": "text/javascript",
}
NOTHING_OPEN = "No case is open. Open the demo case, or import a CT: its pictures are shown here."
ALONE = "Nothing was simulated for this case yet. Ask for a plan: every protocol that it assesses can be shown here."

Mode = Literal["pair", "difference", "spread"]
Scene = dict[str, Any]


def viewer(value: Scene | None = None, elem_id: str = "viewer") -> gr.HTML:
    """The component. Set its value to a `scene`."""
    return gr.HTML(
        value=value or scene(None, None),
        html_template='<div class="mewm-viewer-place"></div>',
        js_on_load=component_script("viewer.js"),
        elem_id=elem_id,
        apply_default_css=False,
        padding=False,
    )


def component_script(module: str) -> str:
    """Script of a component: it hands itself to a module of this program."""
    return (
        f"import('{ASSETS}{module}?v={asset_hash()}')"
        ".then((module) => module.start({element, props, watch, trigger}))"
        ".catch((error) => { element.textContent = 'This part of the page was not loaded (' + error.message + '); '"
        " + 'reload the page.'; });"
    )


@cache
def asset_hash() -> str:
    """Changes with the scripts and styles of the page, so that browsers take new ones."""
    total = hashlib.sha256()
    for name in SCRIPTS:
        total.update(resources.files("agent.web").joinpath(name).read_bytes())
    return total.hexdigest()[:12]


def scene(
    owner: Owner | None,
    case_path: Path | None,
    plan: Plan | None = None,
    *,
    right: str | None = None,
    left: str | None = None,
    mode: Mode | None = None,
    keys: Sequence[str] = (),
    message: str = "",
) -> Scene:
    """What the viewer shows. Nothing is computed here: the browser asks for what it draws.

    Args:
        owner: whose case it is.
        case_path: the open case, among the owner's; None where none is open.
        plan: its assessed protocols can be chosen.
        right: what stands on the right: ``simulated:<protocol key>`` or ``image:<name>``; by default the chosen
            protocol, else a follow-up.
        left: what stands on the left; by default the image that is planned on.
        mode: what the right picture shows.
        keys: protocols of a search that has no plan yet.
        message: a sentence in place of pictures.
    """
    settings = viewer_settings()
    told: Scene = {
        "niivue": f"{ASSETS}niivue.js?v={_niivue_version()}",
        "windows": [window.model_dump() for window in settings.windows],
        "difference": settings.difference.model_dump(),
        "spread": settings.spread.model_dump(),
        "sources": [], "left": None, "right": None, "mode": mode or "pair", "message": message or NOTHING_OPEN,
        "hint": "", "case": "",
    }  # fmt: skip
    if owner is None or case_path is None:
        return told
    try:
        case = Case.load(case_path, verify=False)
        sources = [*_images(case), *_simulated(owner, case, plan, keys)]
        default = IMAGE.replace("-", ":") + case.default_image().name
    except MewmError as exc:
        return {**told, "message": str(exc).replace(f"{case_path.parent}/", "")}
    ids = [source["id"] for source in sources]
    told |= {"sources": sources, "case": case.case_id, "message": message, "origin": case.origin}
    told["left"] = left if left in ids else default
    told["right"] = right if right in ids else _first_right(plan, ids, default)
    if right is not None and right not in ids:
        told["hint"] = f"{right.partition(':')[2]} was not simulated for this case, so there is no picture of it."
    elif told["right"] is None:
        told["hint"] = ALONE
    return told


def _first_right(plan: Plan | None, ids: Sequence[str], default: str) -> str | None:
    if plan is not None and plan.chosen is not None and (chosen := f"simulated:{plan.chosen.assessed.key}") in ids:
        return chosen
    for start in ("simulated:", "registered:", "image:"):
        for name in ids:
            if name.startswith(start) and name != default:
                return name
    return None


def _images(case: Case) -> list[Scene]:
    settings, default = viewer_settings(), case.default_image()
    found = []
    for image in case.images:
        if image.role == "pre":
            labelled = case.labels is not None and case.shares_grid(image, default)
            found.append(_source(case, "image", image.name, f"Before: {_phase(image)}", "Before treatment", IMAGE))
            found[-1]["note"] = f"{_phase(image)}, as scanned"
        else:
            labelled = any(entry.image == image.name for entry in case.follow_up_labels)
            title = f"Follow-up, day {image.day}: {_phase(image)}"
            if has_registration(case, image.name):
                found.append(
                    _source(case, "registered", image.name, f"{title}, registered", "Real follow-up", REGISTERED)
                )
                found[-1]["note"] = "laid over the scan before treatment; outlines are those before treatment"
                _overlay(found[-1], case.labels is not None, settings.before)
                title += ", as scanned"
            found.append(_source(case, "image", image.name, title, "Real follow-up", IMAGE))
            found[-1]["note"] = "not registered: slices of the two pictures do not correspond exactly"
        _overlay(found[-1], labelled, settings.before)
    return found


def _simulated(owner: Owner, case: Case, plan: Plan | None, keys: Sequence[str]) -> list[Scene]:
    """The assessed protocols of a plan in its order, then what a running search has simulated."""
    settings = viewer_settings()
    known = simulated(owner.chats / "artifacts", case.image_key)
    found = []
    for one in plan.assessed if plan is not None else ():
        shown = one.shown_replica
        place = f"{one.rank}. " if one.rank is not None else ""
        found.append(_outcome(case, one.key, place + one.key, shown.outcome_id))
        found[-1]["replicas"] = [replica.outcome_id for replica in one.replicas]
        found[-1]["note"] = (
            f"replica {shown.seed}, the one nearest to the mean of {len(one.replicas)}; not an observation"
        )
    there = {source["id"] for source in found}
    for key in (*keys, *known):
        if key in known and f"simulated:{key}" not in there:
            there.add(f"simulated:{key}")
            found.append(_outcome(case, key, key, known[key][0]))
            found[-1]["replicas"] = list(known[key])
            found[-1]["note"] = f"first of {len(known[key])} replicas so far; not an observation"
    for source in found:
        _overlay(source, True, settings.after)
    return found


def _outcome(case: Case, key: str, title: str, outcome_id: str) -> Scene:
    return _source(case, "simulated", key, title, "Simulated", OUTCOME, outcome_id)


def _source(case: Case, kind: str, name: str, title: str, group: str, start: str, ref: str | None = None) -> Scene:
    base = f"{VOLUMES}{quote(case.path.name)}/{case.image_key[:12]}/"
    return {
        "id": f"{kind}:{name}", "kind": kind, "group": group, "title": title, "base": base,
        "ref": ref or f"{start}{name}", "replicas": [], "overlay": False, "labels": {}, "note": "",
    }  # fmt: skip


def _overlay(source: Scene, there: bool, colours: dict[int, Any]) -> None:
    source["overlay"] = there
    source["labels"] = {str(value): entry.model_dump() for value, entry in colours.items()} if there else {}


def _phase(image: Image) -> str:
    return "CT" if image.phase == "unknown" else f"{image.phase} phase".replace("noncontrast phase", "without contrast")


def _niivue_version() -> str:
    from agent.web.niivue import package

    return package().version
