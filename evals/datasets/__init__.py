"""Datasets of the harness: cases with versioned gold, each with a data card."""

from evals.datasets.eval_case import Dataset, EvalCase, LeftOut, SearchSpace
from evals.datasets.load import NAMES, load_dataset

__all__ = ["NAMES", "Dataset", "EvalCase", "LeftOut", "SearchSpace", "load_dataset"]
