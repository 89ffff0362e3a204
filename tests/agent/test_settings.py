from __future__ import annotations

from agent.settings import PlannerSettings
from models.formulary import Formulary


def test_seeds_of_the_search_and_of_the_last_comparison_are_told_apart() -> None:
    settings = PlannerSettings(seed=2, replicas=3, finalist_replicas=2)
    # replicas 0 to 2 are the search's, 3 and 4 the last comparison's; Algorithm 1 draws its seeds far beyond
    seeds = (200_004, 200_000, 200_003, 200_002, 201_000)
    assert settings.by_phase(seeds) == ((False, (200_000, 200_002, 201_000)), (True, (200_004, 200_003)))
    assert settings.by_phase((200_001,)) == ((False, (200_001,)),)
    assert settings.by_phase((200_003,)) == ((True, (200_003,)),)
    assert settings.by_phase(()) == ()


def test_the_embedded_policy_proposes_all_agents_and_a_language_model_chooses() -> None:
    every, public = Formulary.load("policy"), Formulary.load("hcc_tace_seg")
    assert PlannerSettings().proposed(every) == (10, 6)  # the action set of the paper's Figure 10, without repeats
    assert PlannerSettings().proposed(public) == (3, 2)
    assert PlannerSettings(policy_llm="mine").proposed(every) == (6, 4)
    assert PlannerSettings(drugs=2, embolics=1).proposed(every) == (2, 1)
    assert PlannerSettings(policy_llm="mine", drugs=8).proposed(every) == (8, 4)
    asked_later = PlannerSettings().model_copy(update={"policy_llm": "mine"})  # as a conversation does
    assert asked_later.proposed(every) == (6, 4)
