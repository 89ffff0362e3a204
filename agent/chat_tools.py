"""Chat tools: what the chat's agent may call: the registered tools on the open case, and those that run the planner.

Every result is a JSON object; ours say it in words too (`text`). A language model reads them, so the case is called
"case" in them, and `outgoing` takes out paths, identifiers, names and dates. No tool approves anything: a person does,
past the language model (`agent.chat_commands`).
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal

from langchain.tools import ToolRuntime
from langchain_core.tools import BaseTool, StructuredTool, tool
from langgraph.config import get_config
from pydantic import Field

from agent.chat_store import PlanRow
from agent.compare import compare
from agent.deidentify import NEUTRAL_ID, public_age, public_text
from agent.desk import Desk, Tell
from agent.digest import plan_digest, plan_text, standing_text
from agent.events import Event
from agent.plan import Plan
from agent.run import Standing
from agent.what_if import read_changes, situation
from agent.why import why
from models.errors import InputError, UnknownItemError
from models.formulary import Formulary
from tools.describe_case import CaseDescription
from tools.registry import RegisteredTool
from tools.report_action import ReportReading
from tools.rule_facts import known_agents
from tools.rulebook import CheckRulesResult, Finding, Profile, Rule, load_rulebook

Desks = Callable[[str], Desk]
"""Thread id -> its desk."""
ActionSet = Literal["policy", "in_house", "hcc_tace_seg"]
Strategy = Literal["beam", "paper", "exhaustive"]

_PRIVATE_FIELDS = ("origin_note", "content_hash", "case_hash")
_ID_FIELDS = re.compile(r".*_ids?$")
_YEARS = re.compile(r"\b\d+(?:\.\d+)?(?= years\b)")
_PATH = re.compile(r"(?<![\w.])(?:~|[A-Za-z]:)?[/\\](?:[\w.@-]+[/\\])+[\w.@-]+")


def outgoing(value: object, private: Mapping[str, str]) -> Any:
    """A result as a language model may read it.

    Args:
        value: What JSON holds.
        private: Names and paths that identify the patient, the machine or a person, with what stands for them.

    Returns:
        The same without private fields; texts without paths, the private names, other identifiers and dates. Artifact
        ids stay as they are: a tool reads them back.
    """
    if isinstance(value, Mapping):
        kept = {name: inner for name, inner in value.items() if name not in _PRIVATE_FIELDS}
        if isinstance(age := kept.get("age_years"), int | float):
            kept["age_years"] = public_age(age)
        return {n: v if _ID_FIELDS.fullmatch(n) else outgoing(v, private) for n, v in kept.items()}
    if isinstance(value, list | tuple):
        return [outgoing(inner, private) for inner in value]
    return clean(value, private) if isinstance(value, str) else value


def clean(text: str, private: Mapping[str, str]) -> str:
    """One text as a language model may read it."""
    for name in sorted(private, key=len, reverse=True):
        text = re.sub(rf"(?<![\w-]){re.escape(name)}(?![\w-])", private[name], text)
    text = _YEARS.sub(lambda found: f"{public_age(float(found[0])):g}", text)
    return public_text(_PATH.sub("[path]", text))


def registered(desks: Desks, tools: Sequence[RegisteredTool]) -> list[BaseTool]:
    """The registered tools for the chat: with the names, descriptions and schemas that every caller sees.

    Args:
        desks: Thread id -> desk; the desk's own tools do the work.
        tools: Give names, descriptions and schemas.
    """

    def bound(registered_tool: RegisteredTool) -> BaseTool:
        about_a_case = "workspace" in inspect.signature(registered_tool.function).parameters

        def run(**arguments: Any) -> str:
            desk = desks(str(get_config()["configurable"]["thread_id"]))
            with desk.at_work():
                source = desk.tools()[registered_tool.name] if about_a_case else registered_tool
                result = source.call(**arguments)
            data = result.model_dump(mode="json")
            if isinstance(result, ReportReading):
                data["text"] = " ".join([result.action_text, *result.notes])
            return json.dumps(outgoing(data, desk.private()), ensure_ascii=False)

        return StructuredTool.from_function(
            func=run,
            name=registered_tool.name,
            description=registered_tool.description,
            args_schema=registered_tool.args_schema,
        )

    return [bound(each) for each in tools]


def chat_tools(desks: Desks) -> list[BaseTool]:
    """The tools that only a conversation has."""

    def desk_of(runtime: ToolRuntime[Any, Any]) -> Desk:
        return desks(str(runtime.config["configurable"]["thread_id"]))

    def tell(runtime: ToolRuntime[Any, Any]) -> Tell:
        step = runtime.tool_call_id or ""

        def say(event: Event) -> None:
            runtime.stream_writer(event.model_copy(update={"step": step}).model_dump(mode="json"))

        return say

    def answer(desk: Desk, text: str, **data: Any) -> str:
        return json.dumps(outgoing({"text": text, **data}, desk.private()), ensure_ascii=False)

    @tool
    def load_case(
        runtime: ToolRuntime[Any, Any],
        name: Annotated[str, Field(description="Name of the case, as the person wrote it; empty: the open one")] = "",
    ) -> str:
        """Open a case, or look at the open one: its tumours, image and clinical record. Tools call it "case"."""
        desk = desk_of(runtime)
        with desk.at_work():
            if name.strip():
                desk.open_case(name.strip())
            described = desk.tools()["describe_case"].call(case_id=NEUTRAL_ID)
            case = desk.case()
        assert isinstance(described, CaseDescription)
        stated = [f"{row.label} {row.value} {row.unit}".strip() for row in case.record.to_display()]
        known = "; ".join(stated) or "nothing is stated"
        text = (
            f"The case is open. {described.lesion_count} tumour{'' if described.lesion_count == 1 else 's'}, largest "
            f"diameter {described.largest_diameter_mm:.0f} mm, {described.tumour_ml:.1f} ml; phases: "
            f"{', '.join(described.phases)}; {described.origin} data. Record: {known}."
        )
        return answer(desk, text, case_id=NEUTRAL_ID, case=described.model_dump(mode="json"))

    @tool
    def explore_protocols(
        runtime: ToolRuntime[Any, Any],
        goal: Annotated[str, Field(description="Treatment goal in the person's words; empty: lowest risk")] = "",
        actions: Annotated[ActionSet | None, Field(description="Action set; leave out for the usual one")] = None,
        profile: Annotated[Profile | None, Field(description="Guideline region of the rules")] = None,
        strict: Annotated[bool | None, Field(description="Rules whose strength is open block")] = None,
        strategy: Annotated[Strategy | None, Field(description="Search strategy; leave out for beam search")] = None,
    ) -> str:
        """Plan the open case: search protocols by simulation. Takes minutes; progress is shown to the person.

        The action space and the plan wait for the person's approval, which only the person can give: tell what waits.
        """
        desk = desk_of(runtime)
        asked = {"actions": actions, "profile": profile, "strict": strict, "strategy": strategy}
        settings = desk.settings.model_copy(update={k: v for k, v in asked.items() if v is not None})
        with desk.at_work():
            row, standing = desk.begin(runtime.tool_call_id or "", "plan", settings, goal, tell(runtime))
        return answer(desk, standing_text(standing, row.plan_id), **standing_data(row, standing))

    @tool
    def what_if(
        runtime: ToolRuntime[Any, Any],
        situation_name: Annotated[
            str, Field(description="A named situation such as 'renal failure'; its values are the program's")
        ] = "",
        record: Annotated[
            dict[str, str],
            Field(description="Fields of the clinical record with the value to assume and its unit, or 'unknown'"),
        ] = {},  # noqa: B006 (never changed; a schema shows it)
        actions: Annotated[ActionSet | None, Field(description="Another action set")] = None,
        profile: Annotated[Profile | None, Field(description="Another guideline region")] = None,
        strict: Annotated[bool | None, Field(description="Rules whose strength is open block, or warn")] = None,
        goal: Annotated[str | None, Field(description="Another treatment goal")] = None,
        plan: Annotated[str, Field(description="The plan to ask about; empty: the latest")] = "",
    ) -> str:
        """Plan the case again as if the clinical record, the action set, the rules or the goal were different, and say
        what that changes. Only what the change makes new is simulated. A question, not a plan: nothing is approved.
        """
        desk = desk_of(runtime)
        with desk.at_work():
            row, before = desk.plan(plan)
            run = desk.run_of(row)
            named = situation(situation_name) if situation_name.strip() else None
            changes = {**run.record.changes, **read_changes(named.record if named else {}), **read_changes(record)}
            asked = {"actions": actions, "profile": profile, "strict": strict}
            update = {name: value for name, value in asked.items() if value is not None}
            gates = {"approve_actions": False, "approve_plan": False}
            settings = run.record.settings.model_copy(update={**update, **gates})
            new_goal = run.record.goal if goal is None else goal
            same = run.record.settings.model_copy(update=gates) == settings and new_goal == run.record.goal
            if same and changes == run.record.changes:
                raise InputError("A what-if needs a change: of the record, the action set, the rules or the goal.")
            agents = () if actions else _left_by_a_person(before) or run.record.agents
            call = runtime.tool_call_id or ""
            new, standing = desk.begin(call, "what_if", settings, new_goal, tell(runtime), changes, agents)
        told = [f"{name.replace('_', ' ')}: {value}" for name, value in update.items()]
        told += [f"goal: {new_goal}"] if new_goal != run.record.goal else []
        assumed = f"{named.name} stands for {_values(named.record)} ({named.why}). " if named else ""
        data = {"base": row.plan_id, "assumed": assumed.strip(), "settings_changed": told}
        if standing.plan is None:
            return answer(desk, standing_text(standing, new.plan_id), **data, **standing_data(new, standing))
        text = assumed + what_if_text(before, standing.plan, row.plan_id, new.plan_id, told)
        return answer(desk, text, **data, **standing_data(new, standing))

    @tool
    def compare_protocols(
        runtime: ToolRuntime[Any, Any],
        protocols: Annotated[
            list[str], Field(description="Protocols such as 'Cisplatin + Mitomycin | Lipiodol'; empty: the chosen one")
        ] = [],  # noqa: B006 (never changed; a schema shows it)
        plan: Annotated[str, Field(description="The plan whose seeds are used; empty: the latest")] = "",
    ) -> str:
        """Compare protocols side by side on common seeds: risk, response, rules. One protocol alone gives its response.
        What was not simulated yet is simulated.
        """
        desk = desk_of(runtime)
        with desk.at_work():
            row, found = _plan_or_none(desk, plan)
            if not protocols:
                if found is None or found.chosen is None:
                    raise InputError("Name the protocols to compare: there is no chosen one.")
                protocols = [found.chosen.assessed.key]
            record = desk.run_of(row).record if row else None
            settings = record.settings if record else desk.settings
            parsed = [Formulary.load("all").parse(text) for text in protocols]
            made = compare(parsed, NEUTRAL_ID, desk.tools(row), settings, found, record.goal if record else "")
        rows = [r.model_dump(mode="json", exclude={"findings"}) for r in made.rows]
        return answer(desk, made.text, plan=row.plan_id if row else None, protocols=rows, simulated=made.simulated)

    @tool
    def show_decision(
        runtime: ToolRuntime[Any, Any],
        about: Annotated[str, Field(description="An agent or a protocol; empty: the plan as a whole")] = "",
        plan: Annotated[str, Field(description="The plan; empty: the latest")] = "",
    ) -> str:
        """Why an agent or a protocol was chosen, dropped, blocked or never tried in a plan; or what the plan is."""
        desk = desk_of(runtime)
        row, found = desk.plan(plan)
        standing = desk.look(row)
        if about.strip():
            name, reason = why(found, about)
            return answer(desk, reason, plan=row.plan_id, about=name)
        text = f"{standing_text(standing, row.plan_id)}\n\n{found.explanation}".strip()
        return answer(desk, text, **standing_data(row, standing))

    @tool
    def list_rules(
        runtime: ToolRuntime[Any, Any],
        about: Annotated[
            str, Field(description="A rule id, an agent, a class, 'patient', or a protocol to judge; empty: all rules")
        ] = "",
        profile: Annotated[Profile | None, Field(description="Guideline region")] = None,
    ) -> str:
        """The clinical rules with strength and source; for a protocol, what they say about it for this patient."""
        desk = desk_of(runtime)
        settings = desk.settings
        region = profile or settings.profile
        if (protocol := _protocol(about)) is not None:
            with desk.at_work():
                stated = settings.session.model_dump(exclude_none=True) if settings.session else None
                result = desk.tools()["check_rules"].call(
                    case_id=NEUTRAL_ID, protocols=[protocol], profile=region, strict=settings.strict,
                    stage="complete", session=stated,
                )  # fmt: skip
            assert isinstance(result, CheckRulesResult)
            verdict = result.verdicts[0]
            findings = [*result.patient, *verdict.findings]
            text = judged_text(protocol, findings, verdict.allowed)
            return answer(desk, text, verdict=verdict.model_dump(mode="json"), profile=region)
        rules = _rules_about(about.strip())
        lines = [_rule_line(rule, region) for rule in rules]
        head = f"{len(rules)} rule{'' if len(rules) == 1 else 's'} ({region} profile)"
        return answer(desk, "\n".join([f"{head}:", *lines]), profile=region, rules=[r.id for r in rules])

    return [load_case, explore_protocols, compare_protocols, show_decision, what_if, list_rules]


def standing_data(row: PlanRow, standing: Standing) -> dict[str, Any]:
    """Where a plan stands, as data."""
    data: dict[str, Any] = {"plan": row.plan_id, "status": "stopped" if standing.plan is None else standing.status}
    if standing.waiting is not None:
        value = {k: v for k, v in standing.waiting.value.items() if k != "case_id"}
        data |= {"status": "waiting for the person's approval", "waits": value}
    if standing.plan is not None:
        data["result"] = plan_digest(standing.plan)
    return data


def what_if_text(before: Plan, after: Plan, base: str, name: str, told: Sequence[str]) -> str:
    """What a change does to a plan."""
    changed = "; ".join([*after.what_if, *told])
    old, new = ((p.chosen.assessed.key if p.chosen else None) for p in (before, after))
    fresh = f"{after.execution.simulated} of {after.simulations} simulations were new."
    if not after.simulations:
        fresh = "Nothing was simulated."
    if new is None:
        outcome = plan_text(after, name)
    elif new == old:
        outcome = f"The choice stays. {plan_text(after, name)}"
    else:
        outcome = f"The choice changes. {plan_text(after, name)}"
    return f"What if: {changed}. {outcome} {base} had chosen {old or 'nothing'}. {fresh}"


def judged_text(protocol: str, findings: Sequence[Finding], allowed: bool) -> str:
    """What the rules say about a protocol, in words."""
    fired = [f"{f.rule_id} ({f.strength}): {f.message} [{f.source}]" for f in findings if f.status == "fired"]
    unclear = [f.rule_id for f in findings if f.status == "not_evaluable"]
    verdict = "The rules allow it" if allowed else "The rules block it"
    lines = [f"{protocol}: {verdict}{'' if fired else ', and none fires'}.", *fired]
    if unclear:
        lines.append(f"Not evaluable, because inputs are missing: {', '.join(unclear)}.")
    return "\n".join(lines)


def _left_by_a_person(plan: Plan) -> tuple[str, ...]:
    """The action space where a person edited it: a what-if must not bring back what was taken out."""
    edited = any((a.gate, a.decision) == ("actions", "edit") for a in plan.approvals)
    return tuple(note.item for note in plan.proposals if note.kept) if edited else ()


def _plan_or_none(desk: Desk, plan_id: str) -> tuple[PlanRow | None, Plan | None]:
    """The plan asked for; none where none was asked for and there is none that is ready."""
    if plan_id:
        return desk.plan(plan_id)
    try:
        return desk.plan()
    except InputError:
        desk.case_path()
        return None, None


def _protocol(text: str) -> str | None:
    """The key of a protocol with more than one agent, or None where the text is something else.

    Raises:
        InputError: it is written as a protocol and is none.
    """
    try:
        protocol = known_agents().parse(text)
    except InputError:
        if re.search(r"[|+]", text):
            raise
        return None
    return protocol.key if len(protocol.items) > 1 else None


def _rules_about(about: str) -> list[Rule]:
    rules = load_rulebook().rules
    if not about:
        return list(rules)
    wanted = about.lower()
    if found := [rule for rule in rules if rule.id.lower() == wanted or wanted == "patient" == rule.scope]:
        return found
    try:
        item = known_agents().canonical(about)
        names = {item.name, item.item_class, "drugs" if item.kind == "drug" else "embolics"}
        hint = ""
    except UnknownItemError as error:
        hint = f" {error}"
        names = {wanted.rstrip("s").replace(" ", "_"), wanted.replace(" ", "_")}
    found = [rule for rule in rules if names & set(rule.groups())]
    if not found:
        found = [rule for rule in rules if wanted in rule.title.lower()]
    if not found:
        raise InputError(
            f"No rule is about '{about[:80]}': name a rule id such as D09, an agent, a class, or 'patient'.{hint}"
        )
    return found


def _rule_line(rule: Rule, profile: str) -> str:
    levels = [level for level in rule.levels if profile in level.profiles]
    parts = [f"{level.strength}: {level.message.rstrip('.')}" for level in levels]
    said = "; ".join(parts) or f"not in the {profile} profile"
    return f"{rule.id} {rule.title}: {said} [{rule.source}]"


def _values(record: Mapping[str, str]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in record.items())
