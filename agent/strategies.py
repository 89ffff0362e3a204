"""Strategies by name."""

from __future__ import annotations

from agent.search import Actions, Strategy
from agent.search_beam import BeamStrategy
from agent.search_exhaustive import ExhaustiveStrategy
from agent.search_paper import PaperStrategy
from agent.settings import PlannerSettings


def make_strategy(settings: PlannerSettings, actions: Actions) -> Strategy:
    """The strategy that the settings name.

    Raises:
        PlanningError: the action space is empty, or the budget can't hold what the strategy needs.
    """
    strategies: dict[str, type[Strategy]] = {
        "beam": BeamStrategy,
        "paper": PaperStrategy,
        "exhaustive": ExhaustiveStrategy,
    }
    return strategies[settings.strategy](settings, actions)
