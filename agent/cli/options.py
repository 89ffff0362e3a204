"""Options that several commands share, each with one help text."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

Strategy = Literal["beam", "paper", "exhaustive"]
ActionSet = Literal["policy", "in_house", "hcc_tace_seg"]
Profile = Literal["eu", "us", "cn"]
Device = Literal["auto", "cpu", "cuda"]

StrategyOption = Annotated[Strategy, typer.Option(help="Search strategy.")]
ActionsOption = Annotated[ActionSet, typer.Option(help="Action set of the formulary.")]
ProfileOption = Annotated[Profile, typer.Option(help="Guideline region of the rules.")]
StrictOption = Annotated[bool, typer.Option("--strict", help="Rules whose strength is open block instead of warn.")]
DrugsOption = Annotated[int | None, typer.Option(help="D: drugs to try.", show_default="all, of a language model 6")]
EmbolicsOption = Annotated[
    int | None, typer.Option(help="E: embolic agents to try.", show_default="all, of a language model 4")
]
BeamsOption = Annotated[int | None, typer.Option(help="B: beams kept.", show_default="5")]
ReplicasOption = Annotated[int | None, typer.Option(help="T: most replicas in the search.", show_default="5")]
BudgetOption = Annotated[int | None, typer.Option(help="Most simulations of a plan.", show_default="1000")]
StepsOption = Annotated[int | None, typer.Option(help="Sampling steps of a simulation.", show_default="preset")]
SeedOption = Annotated[int | None, typer.Option(help="Seed of the simulations.", show_default="0")]
DeviceOption = Annotated[Device, typer.Option(help="Where the networks run.")]
PromptsOption = Annotated[
    str | None, typer.Option(help="Prompt set: a name (`mewm prompts list`) or a folder.", show_default="mewm")
]
BackendsOption = Annotated[
    Path | None, typer.Option("--backends", help="Your backend file.", show_default="~/.config/mewm/backends.yaml")
]
ByOption = Annotated[str, typer.Option("--as", help="Name under your approvals.")]
