from agent.plan_nodes import policy_notes
from agent.policy import Choice, Proposal, Refinement, Removal
from agent.state import PlannerState


def test_a_caution_of_the_refinement_stands_beside_the_kept_agent():
    drugs = (Choice(item="Doxorubicin", reason="often used"), Choice(item="Cisplatin", reason="platinum"))
    embolics = (Choice(item="Lipiodol", reason="usual"),)
    refinement = Refinement(
        drugs=drugs[:1],
        embolics=embolics,
        removed=(Removal(item="Cisplatin", rule_id="P09", reason="Kidneys."),),
        cautions=(Removal(item="Doxorubicin", rule_id="P17", reason="Weak heart."),),
    )
    state = PlannerState(proposal=Proposal(drugs=drugs, embolics=embolics), refinement=refinement)
    assert [(n.item, n.kind, n.kept, n.rule_id, n.reason) for n in policy_notes(state)] == [
        ("Doxorubicin", "drug", True, None, "often used; kept although P17 warns: Weak heart."),
        ("Lipiodol", "embolic", True, None, "usual"),
        ("Cisplatin", "drug", False, "P09", "Kidneys."),
    ]
