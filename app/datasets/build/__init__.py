"""`saimp data build`: raw trades to a training dataset."""

from app.datasets.build.options import CLASSES, BuildOptions, Columns
from app.datasets.build.pipeline import BuildSummary, Progress, build_dataset

__all__ = ["CLASSES", "BuildOptions", "BuildSummary", "Columns", "Progress", "build_dataset"]
