from __future__ import annotations

from agent.settings import PlannerSettings


def test_seeds_of_the_search_and_of_the_last_comparison_are_told_apart() -> None:
    settings = PlannerSettings(seed=2, replicas=3, finalist_replicas=2)
    # replicas 0 to 2 are the search's, 3 and 4 the last comparison's; Algorithm 1 draws its seeds far beyond
    seeds = (200_004, 200_000, 200_003, 200_002, 201_000)
    assert settings.by_phase(seeds) == ((False, (200_000, 200_002, 201_000)), (True, (200_004, 200_003)))
    assert settings.by_phase((200_001,)) == ((False, (200_001,)),)
    assert settings.by_phase((200_003,)) == ((True, (200_003,)),)
    assert settings.by_phase(()) == ()
